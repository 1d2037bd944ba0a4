"""``python -m worldmodel.experiments.quantizers``."""

from worldmodel import cli
from worldmodel.experiments.quantizers.compare import compare_quantizers

if __name__ == "__main__":
    cli.run(compare_quantizers)
