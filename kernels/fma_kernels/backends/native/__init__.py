"""Fused kernels for CPUs: plain C, compiled once and loaded by ctypes."""
