"""Float kernels of the graph room."""
