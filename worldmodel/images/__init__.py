"""Data sets of images, their codes, and images generated from a prior over those codes."""
