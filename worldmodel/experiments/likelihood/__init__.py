"""Likelihoods of images in bits per dimension, for VQ-VAEs, VAEs and VIMCO models (first paper, section 4.1)."""
