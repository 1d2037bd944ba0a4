"""Train an agent in a dream: ``python -m agents.train --env.world runs/world --run runs/agent``."""

import sys

from agents.loop import loop
from agents.training import train
from worldmodel import cli

if __name__ == "__main__":
    if "--loop" in sys.argv:
        sys.argv.remove("--loop")
        cli.run(loop)
    else:
        cli.run(train)
