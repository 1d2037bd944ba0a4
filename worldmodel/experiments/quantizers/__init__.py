"""Quantizers compared on one autoencoder, over several seeds (second paper, table 1)."""
