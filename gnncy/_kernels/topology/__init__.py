"""Kernels for graphs on disk."""
