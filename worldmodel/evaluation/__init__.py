"""The sections of ``python -m worldmodel.evaluate``: each measures a world on held-out episodes."""
