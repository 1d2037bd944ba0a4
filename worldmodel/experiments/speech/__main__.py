"""``python -m worldmodel.experiments.speech {synthesize,train,convert,…}``."""

from worldmodel import config
from worldmodel.experiments.speech.learning import prior, train

config.run({"train": train, "prior": prior})
