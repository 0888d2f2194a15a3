"""Float kernels of the nn room."""
