"""Autoregressive nets over a line or a grid of codes: PixelCNN, WavefrontNet and WaveNet, and how they sample."""
