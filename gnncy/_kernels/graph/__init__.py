"""Kernels of the graph room."""
