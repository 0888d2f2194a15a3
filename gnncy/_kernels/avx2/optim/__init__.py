"""Float kernels of the optim room."""
