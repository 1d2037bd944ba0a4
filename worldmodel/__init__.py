"""Discrete world models: VQ-VAE codes, autoregressive priors and dreams. Importing this loads no torch."""
