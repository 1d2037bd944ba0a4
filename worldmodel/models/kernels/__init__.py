"""Sampling loops compiled with Numba for one CPU thread, in float32. Each has a twin in plain torch."""
