"""Turn a run into a world that can be shipped: ``python -m worldmodel.release --run runs/doom-prior …``."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from worldmodel import checkpoint, config
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.segments import split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import written_whole
from worldmodel.world_model import WorldModel


def release(
    run: str, store: str, clips: list[str], out: str, about: str, length: int = 56, redrawn: bool = False
) -> None:
    """Copy what dreaming needs from a prior's run into a folder, with a few recorded clips for dreams to begin from.

    The prior's weights are rounded to float16; the VQ-VAE's stay as they are, so that its codes stay the same. Paths of
    this machine are left out of the configurations.

    Args:
        run: folder of the prior.
        store: the frames that it was trained on.
        clips: beginnings of the clips, each an episode that was held out and a frame of it, such as 109:40.
        out: folder to write; its name is the world's.
        about: one line for python -m worldmodel.worlds: what one sees there, and whose pictures they are.
        length: frames of a clip, as far as its episode goes.
        redrawn: ship the clips as the VQ-VAE shows them, where the recording itself is not to be passed on.
    """
    origin, target, episodes = Path(run), Path(out), EpisodeStore(store)
    held_out = {entry.number: entry for entry in split(episodes)[1]}
    places = [tuple(map(int, found.groups())) for clip in clips if (found := re.fullmatch(r"(\d+):(\d+)", clip))]
    if not clips or length < 2:
        raise ValueError(f"--clips must name one or more, and --length be 2 or more frames, got {clips} and {length}")
    if len(places) < len(clips):
        raise ValueError(
            f"--clips must be an episode, a colon and a frame each, such as 109:40, got {', '.join(clips)}"
        )
    world, cuts = WorldModel.load(origin), []
    for number, start in places:
        if number not in held_out:
            raise ValueError(f"episode {number} was not held out: expected one of {', '.join(map(str, held_out))}")
        clip = cut(episodes, number, start, length)
        if redrawn:
            shown = world.decode(world.encode(torch.from_numpy(clip.observations.copy())))
            clip = replace(clip, observations=shown.numpy())
        cuts.append(clip)
    schema = episodes.schema
    schema = replace(schema, provenance={**schema.provenance, "clips": clips, "redrawn": redrawn})
    with written_whole(target) as folder:
        checkpoint.ship(origin, folder, half=True, about=about)
        checkpoint.ship(origin / "vqvae", folder / "vqvae")
        context = EpisodeStore.create(folder / "context", schema)
        for clip in cuts:
            context.append(clip)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB, {len(context)} clips, {context.frames} frames")


def cut(store: EpisodeStore, number: int, start: int, length: int) -> Episode:
    """A part of an episode, ``length`` frames from ``start`` on or as far as it goes."""
    entry = next(entry for entry in store.entries if entry.number == number)
    length = min(length, entry.observations - start)
    actions, rewards = (part[start : start + length - 1] for part in store.steps(number))
    return Episode(store.observations(number, start, length), actions, rewards, False, False, entry.seed)


if __name__ == "__main__":
    config.run(release)
