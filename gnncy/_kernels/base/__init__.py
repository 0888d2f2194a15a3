"""Float kernels for any CPU."""
