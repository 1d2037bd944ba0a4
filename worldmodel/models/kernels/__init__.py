"""Kernels compiled with Numba for one CPU thread, in float32. Each has an equivalent in plain torch."""
