"""What things cost, each beside something to compare it with: the sections of ``python -m worldmodel.benchmark``."""
