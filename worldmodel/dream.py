"""Imagine a walk: ``python -m worldmodel.dream --action forward`` writes a film of it."""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from worldmodel import config, media
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import free
from worldmodel.models.precision import Precision
from worldmodel.suggest import unknown
from worldmodel.world_model import DEFAULT, WorldModel

REAL, IMAGINED, TO_COME = (235, 235, 235), (255, 140, 0), (40, 40, 40)  # colours of the bar under a film
BAR = 3  # pixels
MOST = 1_000_000  # frames of a dream
FRAMES = 10  # to imagine, if nothing else is said


def dream(
    action: str = "",
    actions: str = "",
    frames: int | None = None,
    context: int = 6,
    world: str = DEFAULT,
    store: str = "",
    episode: int = 0,
    start: int = 0,
    compare: bool = False,
    recorded: bool = False,
    seed: int = 0,
    temperature: float = 1.0,
    out: str = "",
    device: str = "cpu",
    precision: Precision = "float32",
) -> None:
    """Imagine what happens after a few real frames, under actions of your choice, and write it as a film.

    The bar under the film grows with it: white while frames are real, orange once they are imagined. Control-C ends the
    dream early, and writes what was imagined until then.

    Args:
        action: the one that is repeated; if none of --action, --actions and --compare is given, forward, or the first
            one of a world that has no forward.
        actions: several, each with a number of frames, such as forward:10,look_left:5.
        frames: to imagine, after the context; ten if not given, or what --actions add up to, which are otherwise
            repeated as often as it takes.
        context: real frames before the first imagined one.
        world: a shipped world's name, or the run folder of a prior.
        store: recorded episodes to begin from; the world's own few if not given.
        episode: number of the one to begin from.
        start: its frame to begin at.
        compare: dream the recorded actions, and show the recorded frames below the dream.
        recorded: show the frames before the dream as they were recorded, and not as the VQ-VAE shows them, which is how
            it shows the dream.
        seed: the same one gives the same dream.
        temperature: above 1 is wilder, below 1 is calmer, 0 takes the likeliest code everywhere.
        out: file to write, .gif, .mp4 or .png (a strip); by default dream.gif, dream-2.gif, …, the first that is free.
        device: cpu or cuda.
        precision: of what is multiplied in a dream: float32, bfloat16, or auto: bfloat16 if the hardware multiplies it.
    """
    target = Path(out) if out else free(Path("dream.gif"))
    media.check(target)
    if not 1 <= (FRAMES if frames is None else frames) <= MOST or not 1 <= context <= MOST:
        raise ValueError(f"--frames and --context must be 1 or more, and {MOST} at most, got {frames} and {context}")
    if (action != "") + (actions != "") + compare > 1:
        raise ValueError("give one of --action, --actions and --compare, which dreams the recorded actions")
    torch.set_num_threads(1)  # many small steps: more threads only wait for each other
    model = WorldModel.load(world, device, precision=precision)
    episodes = EpisodeStore(store or model.clips)
    model.check_actions(episodes.schema.action_names)
    if store and (note := model.stranger(episodes.schema)):
        print(f"note: {note}", file=sys.stderr)
    real, taken = read(episodes, episode, start, context + (frames or FRAMES if compare else 0))
    wanted = taken[context - 1 :] if compare else plan(action, actions, frames, model.action_names)
    state = model.start(real[None, :context], taken[None, : context - 1])
    calm = torch.zeros(1, *model.dynamics.config.grid)
    model.step(state, wanted[:1], calm, temperature)  # a first step sets up what the others use
    clock, unit = (time.process_time, "CPU time") if device == "cpu" else (time.perf_counter, "time")
    began = clock()
    imagined: list[Tensor] = []
    stop: BaseException | None = None
    try:
        for step in model.steps(state, wanted[None], seed, temperature, progress=True):
            imagined.append(step.codes[0].cpu())
    except (KeyboardInterrupt, SystemExit) as error:
        if not imagined:
            raise
        stop = error
    seconds, codes = clock() - began, torch.stack(imagined)
    dreamt = model.decode(codes)  # only now: the dream itself never left the codes
    before = real[:context] if recorded else model.decode(model.encode(real[:context]))
    film = mark(torch.cat([before, dreamt]), context)
    if compare:
        film = torch.cat([film, real[: len(film)]], 1)
    media.write(target, film.numpy())
    rate = f"{len(codes) / seconds:.1f} frames/s of {unit}"
    print(f"wrote {target}: {context} real and {len(codes)} imagined frames, {rate}")
    if isinstance(stop, SystemExit):
        raise stop


def plan(action: str, actions: str, frames: int | None, known: tuple[str, ...]) -> Tensor:
    """The actions to take, (T,) int64: one all the time, or several, over and over if ``frames`` is given."""
    if not actions:
        return parse(f"{action or ('forward' if 'forward' in known else known[0])}:{frames or FRAMES}", known)
    taken = parse(actions, known)
    return taken.repeat(-(-frames // len(taken)))[:frames] if frames else taken


def parse(actions: str, known: tuple[str, ...]) -> Tensor:
    """``"forward:2,look_left:1"`` -> (T,) int64.

    Raises:
        ValueError: for a name that the world does not know, listing those it knows, or a number that is none.
    """
    numbers = []
    for part in actions.split(","):
        name, _, times = part.strip().partition(":")
        if name not in known:
            raise ValueError(unknown("action", name, known))
        if times and not (times.isascii() and times.isdigit() and 0 < int(times[:20]) <= MOST):
            raise ValueError(f"{part!r} must be an action, a colon and a number of frames, such as {name}:10")
        numbers += [known.index(name)] * int(times or 1)
    return torch.tensor(numbers)


def read(store: EpisodeStore, episode: int, start: int, length: int) -> tuple[Tensor, Tensor]:
    """``length`` recorded frames (length, H, W, 3) uint8 and the actions between them (length-1,) int64.

    Raises:
        ValueError: if there is no such episode or it is too short.
    """
    numbers = [entry.number for entry in store.entries]
    if episode not in numbers:
        raise ValueError(f"{store.path} has no episode {episode}: expected one of {', '.join(map(str, numbers[:20]))}")
    frames = store.observations(episode, start, length)
    actions, _ = store.steps(episode)
    return torch.from_numpy(frames.copy()), torch.from_numpy(actions[start : start + length - 1].copy())


def mark(frames: Tensor, real: int) -> Tensor:
    """Put a bar that grows from frame to frame under (T, H, W, 3) uint8 -> (T, H + 3, W, 3)."""
    length, width = len(frames), frames.shape[2]
    time_of = torch.arange(width) * length // width  # the frame that each column of the bar stands for
    colours = torch.tensor([REAL] * real + [IMAGINED] * (length - real), dtype=torch.uint8)[time_of]  # (W, 3)
    reached = time_of <= torch.arange(length)[:, None]  # (T, W)
    bar = torch.where(reached[..., None], colours, torch.tensor(TO_COME, dtype=torch.uint8))
    return torch.cat([frames, bar[:, None].expand(-1, BAR, -1, -1)], 1)


if __name__ == "__main__":
    config.run(dream)
