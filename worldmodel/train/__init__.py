"""Training programs for the parts of a world model: ``python -m worldmodel.train {vqvae,prior,pixelcnn}``."""
