"""``worldmodel PROGRAM …``, or ``python -m worldmodel PROGRAM …``: the programs as subcommands."""

import runpy
import sys

from worldmodel import cli
from worldmodel.suggest import unknown_name

PROGRAMS = {  # subcommand: the module to run, and one line about it
    "collect": ("worldmodel.collect", "record episodes of an environment into a store"),
    "episodes": ("worldmodel.episodes", "show, verify, import or export a store of episodes"),
    "train": ("worldmodel.train", "train a VQ-VAE, a dynamics model or a spatial prior"),
    "dream": ("worldmodel.dream", "imagine an action-conditional rollout and write it as a film"),
    "play": ("worldmodel.play", "play a dream, or a real environment, in the browser"),
    "worlds": ("worldmodel.worlds", "list the worlds that come with the package"),
    "sample": ("worldmodel.sample", "generate images from a spatial prior"),
    "evaluate": ("worldmodel.evaluate", "measure a world on held-out episodes and write a page"),
    "benchmark": ("worldmodel.benchmark", "measure the speed of everything on this machine"),
    "release": ("worldmodel.release", "turn a run into a world to share"),
    "quantizers": ("worldmodel.experiments.quantizers", "experiment: compare quantizers"),
    "likelihood": ("worldmodel.experiments.likelihood", "experiment: bits per dimension of images"),
    "global_codes": ("worldmodel.experiments.global_codes", "experiment: a few codes for a whole image"),
    "speech": ("worldmodel.experiments.speech", "experiment: discrete codes of speech"),
    "translation": ("worldmodel.experiments.translation", "experiment: translation through discrete latents"),
    "agent": ("agents.train", "train an agent in a dream with RLlib"),
    "evaluate_agent": ("agents.evaluate", "evaluate an agent in the real environment"),
    "release_agent": ("agents.release", "turn an agent into one to share"),
    "plot_agents": ("agents.plot", "plot real returns against real steps"),
}


def main() -> None:
    """Run the program that the first argument names, with the other arguments."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name == "--version":
        cli.run(main, [name])
    elif name in ("--help", "-h"):
        with cli.output_may_close():
            print("usage: worldmodel PROGRAM [options]      worldmodel PROGRAM --help\n")
            print(*(f"  {program:15} {line}" for program, (_, line) in PROGRAMS.items()), sep="\n")
    elif name not in PROGRAMS:
        print("error:", unknown_name("program", name, PROGRAMS), file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"worldmodel {name}", *arguments]
        runpy.run_module(PROGRAMS[name][0], run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
