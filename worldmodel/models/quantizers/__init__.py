"""Quantizers: vectors to discrete codes and back. One kind a file, one line a kind in the table."""
