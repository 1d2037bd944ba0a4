"""Record episodes of an environment: ``python -m worldmodel.collect --frames 10000 --store stores/doom``."""

from worldmodel import cli
from worldmodel.episodes.collect import collect

if __name__ == "__main__":
    cli.run(collect)
