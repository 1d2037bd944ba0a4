"""Speech: a VQ-VAE with a WaveNet decoder, voice conversion, a prior and phonemes (first paper, section 4.3)."""
