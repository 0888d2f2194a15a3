"""Float kernels of the storage room."""
