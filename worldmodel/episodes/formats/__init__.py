"""Episodes in formats other than the store's own."""
