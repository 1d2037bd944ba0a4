"""``python -m worldmodel.experiments.translation``: train-teacher, distill, train, translate, evaluate and others."""

from worldmodel import cli
from worldmodel.experiments.translation.distill import distill
from worldmodel.experiments.translation.evaluate import evaluate
from worldmodel.experiments.translation.plot import plot
from worldmodel.experiments.translation.release import release
from worldmodel.experiments.translation.table import table
from worldmodel.experiments.translation.train import train, train_teacher
from worldmodel.experiments.translation.translate import translate

if __name__ == "__main__":
    cli.run(
        {
            "train-teacher": train_teacher,
            "distill": distill,
            "train": train,
            "translate": translate,
            "evaluate": evaluate,
            "table": table,
            "plot": plot,
            "release": release,
        }
    )
