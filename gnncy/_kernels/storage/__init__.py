"""Kernels of the storage room."""
