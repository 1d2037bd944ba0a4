"""``python -m worldmodel.experiments.speech {synthesize,train,convert,evaluate,phonemes,prior,sample,release}``."""

from worldmodel import cli
from worldmodel.experiments.speech.convert import convert
from worldmodel.experiments.speech.evaluate import evaluate
from worldmodel.experiments.speech.phonemes import phonemes
from worldmodel.experiments.speech.prior import prior
from worldmodel.experiments.speech.release import release
from worldmodel.experiments.speech.sample import sample
from worldmodel.experiments.speech.synthesize import synthesize
from worldmodel.experiments.speech.train import train

if __name__ == "__main__":
    cli.run(
        {
            "synthesize": synthesize,
            "train": train,
            "convert": convert,
            "evaluate": evaluate,
            "phonemes": phonemes,
            "prior": prior,
            "sample": sample,
            "release": release,
        }
    )
