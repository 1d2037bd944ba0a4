"""Training programs: ``python -m worldmodel.train {vqvae,dynamics,heads,spatial_prior}``."""
