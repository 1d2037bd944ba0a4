"""Agents that learn in dreams and are measured in the real world."""
