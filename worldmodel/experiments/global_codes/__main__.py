"""``python -m worldmodel.experiments.global_codes {train,evaluate}``."""

from worldmodel import cli
from worldmodel.experiments.global_codes.evaluate import evaluate
from worldmodel.experiments.global_codes.train import train

if __name__ == "__main__":
    cli.run({"train": train, "evaluate": evaluate})
