"""A world that can be dreamed: a VQ-VAE and the prior over its codes, behind ``start`` and ``step``."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from worldmodel import checkpoint
from worldmodel.checkpoint import PRETRAINED
from worldmodel.checks import check_seed
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.models.autoregressive.sampling import check_temperature
from worldmodel.models.cuda_graphs import Replayed
from worldmodel.models.dream_state import Memory
from worldmodel.models.dynamics import Dynamics, Outlook
from worldmodel.models.precision import Precision, pick, prepared
from worldmodel.models.rollout import Rollout
from worldmodel.models.vqvae import VQVAE
from worldmodel.suggest import unknown

DEFAULT = "doom-health-gathering"
PARTS = {"cpu": 16, "cuda": 1024}  # dreams at once; on a CPU: what a core's cache holds, the compiled loop is made for


class Step(NamedTuple):
    """What one imagined step brings, for each of B dreams."""

    state: Memory
    codes: Tensor  # (B, H, W) int64, the next frame
    rewards: Tensor  # (B,) float32, expected
    terminated: Tensor  # (B,) float32, probability


class WorldModel:
    """Rolls out futures purely in code space; frames are decoded only when asked for.

    Args:
        run: the folder that it came from.
        action_names: what actions 0, 1, … are called.
        threads: that share the work on the CPU, each with some of the dreams. They do better than torch's own, which
            wait for each other in every small step, and want ``torch.set_num_threads(1)``.
        precision: that dreams are multiplied in, all but what decides a code, a reward or an end; auto is bfloat16
            wherever the hardware multiplies it. What is here when the world is made is what it dreams with: later
            changes of the networks do not count.

    Attributes:
        rollout: the prior as it dreams.
    """

    def __init__(
        self,
        vqvae: VQVAE,
        dynamics: Dynamics,
        action_names: Sequence[str],
        run: Path,
        threads: int = 1,
        precision: Precision = "float32",
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be 1 or more, got {threads}")
        self.vqvae, self.dynamics, self.action_names, self.run = vqvae, dynamics, tuple(action_names), run
        self.threads, self.dtype = threads, pick(precision, self.device)
        self.rollout = Rollout(dynamics, self.dtype)
        self._painter = prepared(vqvae, self.dtype, ("encoder", "quantizer"))

    @classmethod
    def load(
        cls,
        world: str | Path = DEFAULT,
        device: str | torch.device = "cpu",
        threads: int = 1,
        precision: Precision = "float32",
    ) -> "WorldModel":
        """Load a shipped world by name, or a prior's run by folder.

        Raises:
            FileNotFoundError: if it is neither; the message lists the names and the nearest one.
            ValueError: if a file of it is damaged.
        """
        run, device = find(world), checkpoint.check_device(device)
        dynamics = checkpoint.load_dynamics(run).to(device)
        vqvae = checkpoint.load_vqvae(run / "vqvae").to(device)
        names, wanted = checkpoint.read_config(run)["data"]["action_names"], dynamics.config.actions
        if not all(isinstance(name, str) for name in names) or wanted not in (0, len(names)):
            raise ValueError(f"{run / 'config.yaml'}: data.action_names must be {wanted} names, got {names!r:.80}")
        return cls(vqvae, dynamics, names, run, threads, precision)

    @property
    def clips(self) -> Path:
        """The store of frames to begin dreams from: a shipped world's own, or the one that a run was trained on."""
        own = self.run / "context"
        return own if own.exists() else Path(checkpoint.read_config(self.run)["data"]["store"])

    def clip(self, number: int = 0, length: int = 6) -> tuple[Tensor, Tensor]:
        """Recorded frames to begin a dream from and the actions between them.

        Args:
            number: which of the world's :attr:`clips`.

        Returns:
            (1, length, H, W, 3) uint8, and (1, length - 1) int64.

        Raises:
            ValueError: if there are fewer, or it is shorter.
        """
        store = EpisodeStore(self.clips)
        if not 0 <= number < len(store):
            raise ValueError(f"{self.run} has clips 0 to {len(store) - 1}, got {number}")
        entry = store.entries[number]
        frames, (actions, _) = store.observations(entry.number, 0, length), store.steps(entry.number)
        return torch.from_numpy(frames.copy())[None], torch.from_numpy(actions[: length - 1].copy())[None]

    def numbers(self, actions: ArrayLike) -> Tensor:
        """Actions of any shape, by name or by number, as int64.

        Raises:
            ValueError: if one does not exist, or is neither.
        """
        given = actions.cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        if given.dtype.kind == "U":
            if strange := [name for name in given.ravel().tolist() if name not in self.action_names]:
                raise ValueError(unknown("action", strange[0], self.action_names))
            given = np.vectorize(self.action_names.index, otypes=[np.int64])(given)
        if not np.issubdtype(given.dtype, np.integer):
            raise ValueError(f"actions must be integers or names, got {given.dtype}")
        if given.size and not 0 <= given.min() <= given.max() < len(self.action_names):
            raise ValueError(f"actions must be in [0, {len(self.action_names)}), got {given.tolist()}")
        return torch.as_tensor(given.astype(np.int64))

    def check_actions(self, names: Sequence[str]) -> None:
        """Refuse episodes whose actions have other names.

        Raises:
            ValueError: if they do.
        """
        if tuple(names) != self.action_names:
            raise ValueError(
                f"the world {self.run} knows the actions {self.action_names}, the episodes have {tuple(names)}"
            )

    def stranger(self, schema: Schema) -> str:
        """A sentence that says so if episodes are of another environment than the one that the world learnt from."""
        data = checkpoint.read_config(self.run)["data"]
        known = data.get("environment", ""), _seen(data.get("kwargs", {}))
        given = schema.environment, _seen(schema.kwargs)
        if not known[0] or known == given:
            return ""
        (mine, settings), (theirs, others) = known, given
        return f"the world {self.run} learnt from {mine} {settings or ''}, these frames are of {theirs} {others or ''}"

    @property
    def device(self) -> torch.device:
        return next(self.dynamics.parameters()).device

    @cached_property
    def _replayed(self) -> Replayed:
        """The prior's step, which on a GPU costs little more than its arithmetic when it is replayed."""
        return Replayed(lambda *given: self.rollout.step(*given), lambda: self.rollout.dynamics.parameters())

    @torch.no_grad()
    def start(self, frames: ArrayLike, actions: ArrayLike) -> Memory:
        """Begin B dreams from n real frames each (B, n, H, W, 3) uint8, and the n-1 actions (B, n-1) between them.

        Frames are a tensor or an array, actions also names or numbers in lists.

        Raises:
            ValueError: if they are of other shapes or types, of another size than the world's, or an action does not
                exist.
        """
        frames = _checked("frames", frames, _bytes, "uint8", ("B", "n", "H", "W", 3))
        codes = self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.start_from_codes(codes, actions)

    @torch.no_grad()
    def start_from_codes(self, codes: ArrayLike, actions: ArrayLike) -> Memory:
        """The same from codes (B, n, h, w) int64."""
        codes = _checked("codes", codes, _whole, "integers", ("B", "n", *self._grid)).long()
        taken = self.numbers(actions)
        many, steps = len(codes), codes.shape[1] - 1
        if taken.ndim < 1 or len(taken) != many or taken.numel() != many * steps:
            raise ValueError(f"actions must be {(many, steps)}, those between the frames, got {tuple(taken.shape)}")
        taken = taken.view(many, steps)  # a list of none for each dream is flat
        return self.rollout.start(codes.to(self.device), taken.to(self.device))

    @torch.no_grad()
    def step(self, state: Memory, actions: ArrayLike, uniforms: ArrayLike, temperature: float = 1.0) -> Step:
        """Take actions (B,), by number or by name, and imagine the next frame.

        Args:
            uniforms: (B, h, w) in [0, 1), the only chance there is: the same numbers give the same codes. See
                :meth:`uniforms`.
            temperature: of the codes; below 1 is calmer, 0 takes the likeliest.

        Raises:
            ValueError: if an action does not exist, there are not as many as dreams, uniforms are of another shape, or
                the temperature is negative.
        """
        if not isinstance(state, Memory):
            raise ValueError(f"state must be what start or a step returned, got {type(state).__name__}")
        self.rollout.check(state)
        actions = self.numbers(actions)
        if actions.shape != (dreams := (len(state.codes),)):
            raise ValueError(f"actions must be {dreams}, one for each dream, got {tuple(actions.shape)}")
        check_temperature(temperature)
        uniforms = _checked("uniforms", uniforms, torch.is_floating_point, "float", (*dreams, *self._grid)).float()
        if not 0 <= uniforms.min() <= uniforms.max() <= 1:
            raise ValueError(f"uniforms must be in [0, 1), got {uniforms.min():.4g} to {uniforms.max():.4g}")
        take = self._replayed if self.device.type == "cuda" else self._step_in_parts
        state, outlook = take(state, actions.to(self.device), uniforms.to(self.device), temperature)
        return Step(state, state.codes[:, 1], outlook.rewards, outlook.termination.sigmoid())

    def imagine(
        self, state: Memory, actions: ArrayLike, seed: int = 0, temperature: float = 1.0, progress: bool = False
    ) -> Tensor:
        """Dream on under actions (B, T), by number or by name, in code space alone.

        Args:
            seed: dream b draws from a generator of its own, seeded with ``seed + b``.
            progress: show a bar.

        Returns:
            The codes of the imagined frames, (B, T, h, w) int64.
        """
        return torch.stack([step.codes for step in self.steps(state, actions, seed, temperature, progress)], 1)

    def steps(
        self, state: Memory, actions: ArrayLike, seed: int = 0, temperature: float = 1.0, progress: bool = False
    ) -> Iterator[Step]:
        """The same, a step at a time."""
        actions = self.numbers(actions)
        if actions.ndim != 2 or 0 in actions.shape:
            raise ValueError(f"actions must be (B, T), got {tuple(actions.shape)}")
        check_seed(seed)
        generators = [torch.Generator().manual_seed(seed + number) for number in range(len(actions))]
        for action in tqdm(actions.T, unit="frame", desc="dream", leave=False, disable=not progress):
            step = self.step(state, action, self.uniforms(generators), temperature)
            state = step.state
            yield step

    def uniforms(self, generators: Sequence[torch.Generator]) -> Tensor:
        """The chance of one step, (B, h, w): each dream draws from a CPU generator of its own."""
        grid = self.dynamics.config.grid
        if not generators:
            raise ValueError("uniforms need a generator for each dream, got none")
        return torch.stack([torch.rand(grid, generator=generator) for generator in generators])

    def encode(self, frames: ArrayLike) -> Tensor:
        """Frames (N, H, W, 3) uint8 -> codes (N, h, w) int64, on the CPU.

        Raises:
            ValueError: if they are of another shape or type.
        """
        frames = _checked("frames", frames, _bytes, "uint8", ("N", "H", "W", 3))
        return self._share_pictures(self.vqvae.encode, frames)

    def decode(self, codes: ArrayLike) -> Tensor:
        """Codes (N, h, w) int64 -> frames (N, H, W, 3) uint8, on the CPU.

        Raises:
            ValueError: if they are of another shape or type, or there is no such code.
        """
        codes = _checked("codes", codes, _whole, "integers", ("N", *self._grid)).long()
        number = self.dynamics.config.codes
        if not 0 <= codes.min() <= codes.max() < number:
            raise ValueError(f"codes must be in [0, {number}), got {int(codes.min())} to {int(codes.max())}")
        return self._share_pictures(self._painter.decode, codes)

    @property
    def _grid(self) -> tuple[int, int]:
        return self.dynamics.config.grid

    def _step_in_parts(
        self, state: Memory, actions: Tensor, uniforms: Tensor, temperature: float
    ) -> tuple[Memory, Outlook]:
        """The prior's step, a few dreams at a time."""
        count = len(actions)
        size = min(self._part, -(-count // self.threads))

        def step(part: slice) -> tuple[Memory, Outlook]:
            return self.rollout.step(state.rows(part), actions[part], uniforms[part], temperature)

        if size == count:
            return step(slice(count))
        states, outlooks = zip(*self._share(step, [slice(n, n + size) for n in range(0, count, size)]), strict=True)
        return Memory.joined(states), Outlook(*map(torch.cat, zip(*outlooks, strict=True)))

    def _share_pictures(self, function: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
        parts = pictures.split(self._part)
        return torch.cat(self._share(lambda part: function(part.to(self.device)).cpu(), parts))

    def _share(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
        """The results for all parts, in order, worked out by the threads of this world."""
        function = torch.no_grad()(function)  # a new thread would compute gradients
        return list(self._pool.map(function, parts) if self.threads > 1 else map(function, parts))

    @property
    def _part(self) -> int:
        return PARTS.get(self.device.type, PARTS["cuda"])

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads)


def _seen(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The settings of an environment that change what one sees."""
    return {name: value for name, value in kwargs.items() if name not in ("objects", "render_mode", "reproducible")}


def _bytes(given: Tensor) -> bool:
    return given.dtype == torch.uint8


def _whole(given: Tensor) -> bool:
    return not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool


def _checked(
    what: str, given: ArrayLike, fits: Callable[[Tensor], bool], kind: str, shape: tuple[int | str, ...]
) -> Tensor:
    """What a caller gave, as a tensor.

    Args:
        fits: whether its type is right.
        kind: what that type is called.
        shape: the right one, in which a letter stands for any number of 1 or more.

    Raises:
        ValueError: if it is of another type or shape.
    """
    tensor = given if isinstance(given, Tensor) else _tensor(what, np.asarray(given))
    sizes = zip(tensor.shape, shape, strict=False)
    if (
        not fits(tensor)
        or tensor.ndim != len(shape)
        or not all(size == wanted or (isinstance(wanted, str) and size) for size, wanted in sizes)
    ):
        expected = ", ".join(map(str, shape))
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{what} must be {kind} ({expected}), got {got} {tuple(tensor.shape)}")
    return tensor


def _tensor(what: str, given: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(given.copy())
    except TypeError as error:
        raise ValueError(f"{what} must be numbers, got {given.dtype}") from error


def names() -> list[str]:
    """The worlds that come with the package."""
    return checkpoint.names(PRETRAINED)


def find(world: str | Path) -> Path:
    """The folder of a shipped world or of a run; raises as :func:`worldmodel.checkpoint.find`."""
    return checkpoint.find("world", world, PRETRAINED)
