"""Autoregressive networks over a sequence or a grid of codes: PixelCNN, WavefrontNet and WaveNet."""
