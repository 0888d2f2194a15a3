"""Float kernels of the losses room."""
