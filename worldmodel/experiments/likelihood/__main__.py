"""``python -m worldmodel.experiments.likelihood {train,evaluate}``."""

from worldmodel import cli
from worldmodel.experiments.likelihood.evaluate import evaluate
from worldmodel.experiments.likelihood.train import train

if __name__ == "__main__":
    cli.run({"train": train, "evaluate": evaluate})
