"""Quantizers between vectors and discrete codes: one file for each kind, and a table of kinds."""
