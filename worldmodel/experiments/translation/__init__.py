"""Translation: all words at once from a short sequence of discrete latents (second paper, section 5.1)."""
