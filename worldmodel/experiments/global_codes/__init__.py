"""A second VQ-VAE over the codes of a first one (first paper, section 4.2)."""
