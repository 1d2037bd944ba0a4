"""Dream a rollout and write it as a video: ``python -m worldmodel.dream --action forward``."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel import cli, media
from worldmodel.action_script import DEFAULT_FRAMES, MAX_FRAMES, plan_actions
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import unused_path
from worldmodel.models.config import NUM_CONTEXT_FRAMES, Precision
from worldmodel.shipped import DEFAULT_WORLD

if TYPE_CHECKING:
    from torch import Tensor

REAL_COLOR, IMAGINED_COLOR, REMAINING_COLOR = (235, 235, 235), (255, 140, 0), (40, 40, 40)  # of the progress bar
BAR_HEIGHT = 3  # pixels


def dream(
    action: str = "",
    actions: str = "",
    frames: int | None = None,
    context: int = NUM_CONTEXT_FRAMES,
    world: str = DEFAULT_WORLD,
    store: str = "",
    episode: int = 0,
    start: int = 0,
    compare: bool = False,
    raw_context: bool = False,
    seed: int = 0,
    temperature: float = 1.0,
    out: str = "",
    device: str = "cpu",
    precision: Precision = "float32",
) -> None:
    """Imagine what follows a few real frames under given actions, and write it as a video.

    The progress bar below the video is white for real and orange for imagined frames. Control-C ends the dream early
    and writes the frames imagined so far.

    Args:
        action: action to repeat; by default forward, or the world's first action if it has no forward.
        actions: action script with a number of frames per action, such as forward:10,look_left:5.
        frames: number of frames to imagine after the context; by default 10, or the length of --actions, which is
            otherwise repeated as needed.
        context: number of real frames before the dream.
        world: name of a shipped world, or run folder of a dynamics model.
        store: folder of recorded episodes to start from; by default the world's own clips.
        episode: number of the episode to start from.
        start: index of the first context frame in the episode.
        compare: dream the recorded actions, and show the recorded frames below the dream.
        raw_context: show the context frames as recorded instead of as VQ-VAE reconstructions.
        seed: random seed of the dream.
        temperature: sampling temperature, 0 or more; 0 always takes the most probable code.
        out: file to write, .gif, .mp4 or .png (a strip); by default the first unused name of dream.gif, dream-2.gif, ….
        device: device to dream on, cpu or cuda.
        precision: number format of the dynamics model: float32, bfloat16, or auto for bfloat16 if the hardware has it.
    """
    import torch

    from worldmodel.episodes.segments import read_clip
    from worldmodel.world_model import WorldModel

    target = Path(out) if out else unused_path(Path("dream.gif"))
    media.check_path(target)
    if not 1 <= (DEFAULT_FRAMES if frames is None else frames) <= MAX_FRAMES or not 1 <= context <= MAX_FRAMES:
        raise ValueError(f"--frames and --context must be in [1, {MAX_FRAMES}], got {frames} and {context}")
    if (action != "") + (actions != "") + compare > 1:
        raise ValueError("give one of --action, --actions and --compare, which dreams the recorded actions")
    torch.set_num_threads(1)  # the steps are too small to share among threads
    model = WorldModel.load(world, device, precision=precision)
    episodes = EpisodeStore(store or model.clips_folder)
    model.check_actions(episodes.schema.action_names)
    if not model.obeys_actions:
        print(
            f"note: the world {world} was trained without actions or context: actions have no effect", file=sys.stderr
        )
    if store and (note := model.environment_mismatch(episodes.schema)):
        print(f"note: {note}", file=sys.stderr)
    real, recorded = read_clip(episodes, episode, start, context + (frames or DEFAULT_FRAMES if compare else 0))
    chosen = None if compare else torch.from_numpy(plan_actions(action, actions, frames, model.action_names))
    script = recorded[context - 1 :] if chosen is None else chosen
    state = model.start(real[None, :context], recorded[None, : context - 1])
    uniforms = torch.zeros(1, *model.dynamics.config.grid)
    model.step(state, script[:1], uniforms, temperature)  # warm up, so that set-up time is not measured
    clock, unit = (time.process_time, "CPU time") if device == "cpu" else (time.perf_counter, "time")
    started = clock()
    imagined: list[Tensor] = []
    interruption: BaseException | None = None
    try:
        for step in model.imagine_steps(state, script[None], seed, temperature, progress=True):
            imagined.append(step.codes[0].cpu())
    except (KeyboardInterrupt, SystemExit) as error:
        if not imagined:
            raise
        interruption = error
    seconds, codes = clock() - started, torch.stack(imagined)
    dreamed = model.decode(codes)
    before = real[:context] if raw_context else model.decode(model.encode(real[:context]))
    video = add_progress_bar(torch.cat([before, dreamed]), context)
    if compare:
        video = torch.cat([video, real[: len(video)]], 1)
    media.write(target, video.numpy(), model.frame_rate)
    rate = f"{len(codes) / seconds:.1f} frames/s of {unit}"
    print(f"wrote {target}: {context} real and {len(codes)} imagined frames, {rate}")
    if isinstance(interruption, SystemExit):
        raise interruption


def add_progress_bar(frames: "Tensor", num_real: int) -> "Tensor":
    """Add a bar that grows with time below frames (T, H, W, 3) uint8 -> (T, H + 3, W, 3)."""
    import torch

    length, width = len(frames), frames.shape[2]
    frame_of_column = torch.arange(width) * length // width
    colors = torch.tensor([REAL_COLOR] * num_real + [IMAGINED_COLOR] * (length - num_real), dtype=torch.uint8)
    elapsed = frame_of_column <= torch.arange(length)[:, None]  # (T, W)
    bar = torch.where(elapsed[..., None], colors[frame_of_column], torch.tensor(REMAINING_COLOR, dtype=torch.uint8))
    return torch.cat([frames, bar[:, None].expand(-1, BAR_HEIGHT, -1, -1)], 1)


if __name__ == "__main__":
    cli.run(dream)
