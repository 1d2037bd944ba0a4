"""``python -m worldmodel.experiments.quantizers``."""

from worldmodel import config
from worldmodel.experiments.quantizers.compare import compare_quantizers

if __name__ == "__main__":
    config.run(compare_quantizers)
