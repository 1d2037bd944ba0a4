"""``python -m worldmodel.experiments.speech {synthesize,train,convert,evaluate,phonemes,prior,sample,ship}``."""

from worldmodel import config
from worldmodel.data.synthesis import synthesize
from worldmodel.experiments.speech.knowing import phonemes
from worldmodel.experiments.speech.learning import prior, train
from worldmodel.experiments.speech.measuring import evaluate
from worldmodel.experiments.speech.using import convert, sample, ship

if __name__ == "__main__":
    config.run(
        {
            "synthesize": synthesize,
            "train": train,
            "convert": convert,
            "evaluate": evaluate,
            "phonemes": phonemes,
            "prior": prior,
            "sample": sample,
            "ship": ship,
        }
    )
