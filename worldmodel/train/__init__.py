"""Training programs: ``python -m worldmodel.train {vqvae,dynamics,spatial_prior}``."""
