"""Export a dynamics run as a world that can be shipped: ``python -m worldmodel.release --run runs/doom-prior …``."""

import re
from dataclasses import replace
from pathlib import Path

from worldmodel import cli
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import write_folder_atomically


def release(
    run: str, store: str, clips: str, out: str, about: str, length: int = 56, reconstructed: bool = False
) -> None:
    """Export a trained world model, with a few recorded clips to start dreams from, into a folder.

    The weights of the dynamics model and of the decoder are rounded to float16; those of the encoder and the codebook
    are not, so that frames keep their codes. Paths of this machine are removed from the configurations.

    Args:
        run: run folder of the dynamics model.
        store: folder of the recorded episodes that the model was trained on.
        clips: comma-separated starts of clips, each a held-out episode and a frame, such as 109:40,119:0.
        out: folder to write, named after the world.
        about: one-line description for python -m worldmodel.worlds, with the source of the images.
        length: maximum number of frames in a clip; a clip also ends with its episode.
        reconstructed: release VQ-VAE reconstructions of the clips, if the recording itself must not be redistributed.
    """
    import torch

    from worldmodel import checkpoint
    from worldmodel.episodes.segments import split_held_out
    from worldmodel.models.config import NUM_CONTEXT_FRAMES
    from worldmodel.world_model import WorldModel

    origin, target, episodes = Path(run), Path(out), EpisodeStore(store)
    held_out = {entry.number: entry for entry in split_held_out(episodes)[1]}
    names = clips.split(",")
    starts = [tuple(map(int, match.groups())) for name in names if (match := re.fullmatch(r"(\d+):(\d+)", name))]
    if not clips or length < NUM_CONTEXT_FRAMES:
        raise ValueError(
            f"--clips must name one or more clips, and --length must be {NUM_CONTEXT_FRAMES} or more frames, "
            f"got {clips!r} and {length}"
        )
    if len(starts) < len(names):
        raise ValueError(f"--clips must be an episode, a colon and a frame each, such as 109:40,119:0, got {clips}")
    world, episode_clips = WorldModel.load(origin), []
    world.check_episodes(episodes.schema)
    if note := world.environment_mismatch(episodes.schema):
        raise ValueError(f"--store is not of the world's environment: {note}")
    for number, start in starts:
        if number not in held_out:
            raise ValueError(f"episode {number} was not held out: expected one of {', '.join(map(str, held_out))}")
        if (left := held_out[number].observations - start) < NUM_CONTEXT_FRAMES:
            raise ValueError(
                f"clip {number}:{start} has {max(0, left)} frames, a dream needs {NUM_CONTEXT_FRAMES}; "
                "give an earlier start"
            )
        clip = cut_clip(episodes, number, start, length)
        if reconstructed:
            reconstruction = world.decode(world.encode(torch.from_numpy(clip.observations.copy())))
            clip = replace(clip, observations=reconstruction.numpy(), reproducible=False)
        episode_clips.append(clip)
    schema = episodes.schema
    schema = replace(schema, provenance={**schema.provenance, "clips": names, "reconstructed": reconstructed})
    with write_folder_atomically(target) as folder:
        checkpoint.export(origin, folder, half="", about=about)
        checkpoint.export(origin / "vqvae", folder / "vqvae", half="decoder.")
        context = EpisodeStore.create(folder / "context", schema)
        for clip in episode_clips:
            context.append(clip)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB, {len(context)} clips, {context.num_frames} frames")


def cut_clip(store: EpisodeStore, number: int, start: int, length: int) -> Episode:
    """Return ``length`` frames of an episode from ``start``, or fewer if the episode ends, as an episode."""
    entry = next(entry for entry in store.entries if entry.number == number)
    length = min(length, entry.observations - start)
    actions, rewards = (part[start : start + length - 1] for part in store.steps(number))
    frames, reproducible = store.observations(number, start, length), entry.reproducible and start == 0
    return Episode(frames, actions, rewards, False, False, entry.seed, reproducible=reproducible)


if __name__ == "__main__":
    cli.run(release)
