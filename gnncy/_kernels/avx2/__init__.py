"""Float kernels for CPUs with AVX2 and FMA, compiled from the sources in base."""
