"""Helpers for tools and tests; each module imports only what it needs."""
