"""Experiments of the two papers, each a program on the same core."""
