"""Export an agent to share: ``python -m agents.release --run runs/agent --world doom-take-cover --out take-cover``."""

from pathlib import Path

import yaml

from worldmodel import cli
from worldmodel.files import write_folder_atomically
from worldmodel.shipped import find_agent, find_world

PATHS = ("store", "start")  # arguments of the dreams that name data of this machine


def release(run: str, world: str, out: str, about: str) -> None:
    """Export an agent as a folder of weights, rounded to float16, and configuration, without paths of this machine.

    The agent observes the world's codes, and so needs that world wherever it is used.

    Args:
        run: run folder of the agent.
        world: name of the shipped world whose VQ-VAE the agent was trained with.
        out: folder to write, named after the agent.
        about: one-line description of the agent.
    """
    from agents.policy import read_agent_config
    from worldmodel import checkpoint, tensor_io

    origin, target = find_agent(run), Path(out)
    read_agent_config(origin)
    if tensor_io.digest(origin / "vqvae") != tensor_io.digest(find_world(world) / "vqvae"):
        raise ValueError(f"--run {run} sees the codes of another VQ-VAE than --world {world}")
    with write_folder_atomically(target) as folder:
        checkpoint.export(origin, folder, half="", about=about, world=world)
        values = checkpoint.read_config(folder)
        settings = {name: value for name, value in values["data"]["env_kwargs"].items() if name not in PATHS}
        values = {**values, "data": {**values["data"], "env_kwargs": {**settings, "world": world}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    cli.run(release)
