"""The parts of ``python -m worldmodel.evaluate``: each takes a world and held-out episodes and returns numbers."""
