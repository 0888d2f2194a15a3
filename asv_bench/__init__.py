"""Benchmarks: asv's own in ``benchmarks``, side-by-side runs against other libraries in ``peers``."""
