"""The tables of results, a module for each subject."""
