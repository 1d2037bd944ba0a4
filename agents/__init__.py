"""Agents that are trained in dreams and evaluated in the real environment."""
