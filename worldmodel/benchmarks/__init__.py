"""The sections of ``python -m worldmodel.benchmark``: each times one part against alternatives."""
