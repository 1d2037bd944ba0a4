"""World model: a VQ-VAE and a dynamics model over its codes, with the interface ``start`` and ``step``."""

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

from worldmodel import checkpoint, env_wrappers
from worldmodel.checks import check_seed, check_temperature, check_threads
from worldmodel.episodes.segments import read_clip
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.models.config import NUM_CONTEXT_FRAMES, Precision
from worldmodel.models.cuda_graphs import CUDAGraphed
from worldmodel.models.dream_state import DreamState
from worldmodel.models.dynamics import Dynamics, Prediction
from worldmodel.models.precision import check_device, prepare_for_inference, resolve_precision
from worldmodel.models.rollout import Rollout
from worldmodel.models.vqvae import VQVAE
from worldmodel.shipped import DEFAULT_WORLD, find_world
from worldmodel.suggest import unknown_name

CHUNK_SIZES = {"cpu": 16, "cuda": 1024}  # dreams at a time; on a CPU, what fits into a core's cache
DTYPE_CHECKS: dict[str, Callable[[Tensor], bool]] = {
    "uint8": lambda tensor: tensor.dtype == torch.uint8,
    "integers": lambda tensor: not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool),
    "float": torch.is_floating_point,
}


class Step(NamedTuple):
    """Result of one imagined step of B dreams."""

    state: DreamState
    codes: Tensor  # (B, h, w) int64, next frame
    rewards: Tensor  # (B,) float32, expected rewards
    termination_probs: Tensor  # (B,) float32, probabilities of termination


class WorldModel:
    """Rolls out futures in code space only; frames are decoded on request.

    Args:
        action_names: names of actions 0, 1, ….
        run: run folder or folder of a shipped world.
        threads: number of CPU threads that share the dreams; call ``torch.set_num_threads(1)`` as well, because torch's
            own threads are slow for such small steps.
        precision: number format of the dynamics model, except where codes, rewards and terminations are decided; auto
            for bfloat16 if the hardware has it. Dreaming and decoding use copies of the weights, so later changes of
            ``dynamics`` and of the decoder have no effect on them; :meth:`encode` uses ``vqvae`` itself.

    Attributes:
        rollout: inference version of the dynamics model.
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
        check_threads(threads)
        self.vqvae, self.dynamics, self.action_names, self.run = vqvae, dynamics, tuple(action_names), run
        self.threads, self.dtype = threads, resolve_precision(precision, self.device)
        self.rollout = Rollout(dynamics, self.dtype)
        self._decoding_vqvae = prepare_for_inference(vqvae, self.dtype, ("encoder", "quantizer"))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be copied or pickled, and is made again when needed."""
        return {name: value for name, value in vars(self).items() if name not in ("_pool", "_graphed_step")}

    @classmethod
    def load(
        cls,
        world: str | Path = DEFAULT_WORLD,
        device: str | torch.device = "cpu",
        threads: int = 1,
        precision: Precision = "float32",
    ) -> "WorldModel":
        """Load a shipped world by name, or the run of a dynamics model by folder.

        Raises:
            FileNotFoundError: if there is no such world or run; the message suggests the closest name.
            ValueError: if a file is damaged.
        """
        run, device = find_world(world), check_device(device)
        dynamics = checkpoint.load_dynamics(run).to(device)
        vqvae = checkpoint.load_vqvae(run / "vqvae").to(device)
        names, num_actions = checkpoint.read_config(run)["data"]["action_names"], dynamics.config.num_actions
        if not all(isinstance(name, str) for name in names) or num_actions not in (0, len(names)):
            raise ValueError(f"{run / 'config.yaml'}: data.action_names must be {num_actions} names, got {names!r:.80}")
        return cls(vqvae, dynamics, names, run, threads, precision)

    @property
    def precision(self) -> Precision:
        """Number format of the dynamics model: float32 or bfloat16."""
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    @property
    def clips_folder(self) -> Path:
        """Folder of a store to start dreams from: a shipped world's clips, or the store that a run was trained on."""
        own = self.run / "context"
        return own if own.exists() else Path(checkpoint.read_config(self.run)["data"]["store"])

    def clip(self, index: int = 0, length: int = NUM_CONTEXT_FRAMES) -> tuple[Tensor, Tensor]:
        """Read recorded frames to start a dream from and the actions between them.

        Args:
            index: position of the episode among those in :attr:`clips_folder`, by number.

        Returns:
            Frames (1, length, H, W, 3) uint8 and actions (1, length - 1) int64.

        Raises:
            ValueError: if there is no such clip or it is too short.
        """
        store = EpisodeStore(self.clips_folder)
        if not 0 <= index < len(store):
            raise ValueError(f"{self.run} has clips 0 to {len(store) - 1}, got {index}")
        frames, actions = read_clip(store, store.entries[index].number, 0, length)
        return frames[None], actions[None]

    def action_indices(self, actions: ArrayLike) -> Tensor:
        """Convert actions of any shape, given as names or numbers, to int64.

        Raises:
            ValueError: if an action does not exist, or is neither a name nor a number.
        """
        given = actions.cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        if given.dtype.kind == "U":
            if unknown := [name for name in given.ravel().tolist() if name not in self.action_names]:
                raise ValueError(unknown_name("action", unknown[0], self.action_names))
            given = np.vectorize(self.action_names.index, otypes=[np.int64])(given)
        if given.size and not np.issubdtype(given.dtype, np.integer):  # an empty list is an array of floats
            raise ValueError(f"actions must be integers or names, got {given.dtype}")
        if given.size and not 0 <= given.min() <= given.max() < len(self.action_names):
            raise ValueError(f"actions must be in [0, {len(self.action_names)}), got {given.tolist()}")
        return torch.as_tensor(given.astype(np.int64))

    def check_actions(self, names: Sequence[str]) -> None:
        """Check that the actions of episodes have the same names as the world's.

        Raises:
            ValueError: if the names differ.
        """
        if tuple(names) != self.action_names:
            raise ValueError(
                f"the world {self.run} knows the actions {self.action_names}, the episodes have {tuple(names)}"
            )

    def check_episodes(self, schema: Schema) -> None:
        """Check that episodes, of frames, have the world's actions and give as many codes as it predicts.

        Raises:
            ValueError: if they don't.
        """
        self.check_actions(schema.action_names)
        grid = tuple(side // self.vqvae.encoder.multiple for side in schema.observation_shape[:2])
        if grid != (trained := tuple(self.dynamics.config.grid)):
            raise ValueError(f"the world {self.run} dreams frames of {trained} codes, the episodes have {grid}")

    def environment_mismatch(self, schema: Schema) -> str:
        """Return a note if episodes are from another environment than the training data, else an empty string."""
        data = checkpoint.read_config(self.run)["data"]
        trained = data.get("environment", ""), _visual_kwargs(data.get("kwargs", {}))
        given = schema.environment, _visual_kwargs(schema.kwargs)
        if not trained[0] or trained == given:
            return ""
        (env, kwargs), (given_env, given_kwargs) = trained, given
        return (
            f"the world {self.run} was trained on {env} {kwargs or ''}, these frames are from {given_env} "
            f"{given_kwargs or ''}"
        )

    @property
    def obeys_actions(self) -> bool:
        """Whether actions can have an effect: the dynamics model was trained with actions and with past frames."""
        return bool(self.dynamics.config.num_actions and self.dynamics.config.context_length)

    @property
    def frame_rate(self) -> float:
        """Steps per second at which the recorded environment passes in real time, 10 if that is unknown."""
        return env_wrappers.recorded_rate(checkpoint.read_config(self.run)["data"])

    @property
    def device(self) -> torch.device:
        """Device of the dynamics model."""
        return next(self.dynamics.parameters()).device

    @cached_property
    def _graphed_step(self) -> CUDAGraphed:
        """The step of the dynamics model as a CUDA graph, which avoids the launch cost of its many small kernels."""
        return CUDAGraphed(lambda *args: self.rollout.step(*args), lambda: self.rollout.dynamics.parameters())

    @torch.no_grad()
    def start(self, frames: ArrayLike, actions: ArrayLike) -> DreamState:
        """Start B dreams from n frames each, (B, n, H, W, 3) uint8, and the actions (B, n-1) between them.

        Frames and actions can be tensors or arrays, actions also lists of names or numbers.

        Raises:
            ValueError: if a shape, type or image size is wrong, or an action does not exist.
        """
        frames = _check_tensor("frames", frames, "uint8", ("B", "n", "H", "W", 3))
        codes = self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.start_from_codes(codes, actions)

    @torch.no_grad()
    def start_from_codes(self, codes: ArrayLike, actions: ArrayLike) -> DreamState:
        """Start B dreams from codes (B, n, h, w) int64; see :meth:`start`."""
        codes = _check_tensor("codes", codes, "integers", ("B", "n", *self._grid)).long()
        indices = self.action_indices(actions)
        shape = len(codes), codes.shape[1] - 1
        if indices.ndim < 1 or len(indices) != shape[0] or indices.numel() != shape[0] * shape[1]:
            raise ValueError(f"actions must be {shape}, those between the frames, got {tuple(indices.shape)}")
        indices = indices.view(shape)  # an empty list for each dream has only one dimension
        return self.rollout.start(codes.to(self.device), indices.to(self.device))

    @torch.no_grad()
    def step(self, state: DreamState, actions: ArrayLike, uniforms: ArrayLike, temperature: float = 1.0) -> Step:
        """Take actions (B,), given as numbers or names, and imagine the next frame.

        Args:
            uniforms: random numbers (B, h, w) in [0, 1), which determine the sampled codes; see :meth:`uniforms`.
            temperature: sampling temperature; 0 takes the most probable codes.

        Raises:
            ValueError: if an action does not exist, a shape is wrong, or the temperature is negative.
        """
        if not isinstance(state, DreamState):
            raise ValueError(f"state must be what start or a step returned, got {type(state).__name__}")
        self.rollout.check_state(state)
        actions = self.action_indices(actions)
        if actions.shape != (shape := (len(state.codes),)):
            raise ValueError(f"actions must be {shape}, one for each dream, got {tuple(actions.shape)}")
        check_temperature(temperature)
        uniforms = _check_tensor("uniforms", uniforms, "float", (*shape, *self._grid)).float()
        if not 0 <= uniforms.min() <= uniforms.max() <= 1:  # a float64 just below 1 may have been rounded to 1
            raise ValueError(f"uniforms must be in [0, 1), got {uniforms.min():.4g} to {uniforms.max():.4g}")
        step = self._graphed_step if self.device.type == "cuda" else self._step_in_chunks
        state, prediction = step(state, actions.to(self.device), uniforms.to(self.device), temperature)
        return Step(state, state.latest_codes, prediction.rewards, prediction.termination_logits.sigmoid())

    def imagine(
        self, state: DreamState, actions: ArrayLike, seed: int = 0, temperature: float = 1.0, progress: bool = False
    ) -> Tensor:
        """Imagine the frames that follow under actions (B, T), given as numbers or names.

        Args:
            seed: random seed; dream b uses ``seed + b``.
            progress: show a progress bar.

        Returns:
            Codes of the imagined frames, (B, T, h, w) int64.
        """
        return torch.stack([step.codes for step in self.imagine_steps(state, actions, seed, temperature, progress)], 1)

    def imagine_steps(
        self, state: DreamState, actions: ArrayLike, seed: int = 0, temperature: float = 1.0, progress: bool = False
    ) -> Iterator[Step]:
        """Yield the steps of :meth:`imagine` one at a time."""
        actions = self.action_indices(actions)
        if actions.ndim != 2 or 0 in actions.shape:
            raise ValueError(f"actions must be (B, T), got {tuple(actions.shape)}")
        check_seed(seed)
        generators = [torch.Generator().manual_seed(int(seed) + row) for row in range(len(actions))]
        for action in tqdm(actions.T, unit="frame", desc="dream", leave=False, disable=not progress):
            step = self.step(state, action, self.uniforms(generators), temperature)
            state = step.state
            yield step

    def uniforms(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the random numbers of one step, (B, h, w), from one CPU generator per dream."""
        grid = self.dynamics.config.grid
        if not generators or not all(isinstance(generator, torch.Generator) for generator in generators):
            raise ValueError(f"uniforms need a torch.Generator for each dream, got {generators!r:.80}")
        return torch.stack([torch.rand(grid, generator=generator) for generator in generators])

    def encode(self, frames: ArrayLike) -> Tensor:
        """Encode frames (N, H, W, 3) uint8 into codes (N, h, w) int64, on the CPU.

        Raises:
            ValueError: if the shape or type is wrong.
        """
        frames = _check_tensor("frames", frames, "uint8", ("N", "H", "W", 3))
        return self._map_images(self.vqvae.encode, frames)

    def decode(self, codes: ArrayLike) -> Tensor:
        """Decode codes (N, h, w) int64 into frames (N, H, W, 3) uint8, on the CPU.

        Raises:
            ValueError: if the shape or type is wrong, or a code does not exist.
        """
        codes = _check_tensor("codes", codes, "integers", ("N", *self._grid)).long()
        size = self.dynamics.config.codebook_size
        if not 0 <= codes.min() <= codes.max() < size:
            raise ValueError(f"codes must be in [0, {size}), got {int(codes.min())} to {int(codes.max())}")
        return self._map_images(self._decoding_vqvae.decode, codes)

    @property
    def _grid(self) -> tuple[int, int]:
        return self.dynamics.config.grid

    def _step_in_chunks(
        self, state: DreamState, actions: Tensor, uniforms: Tensor, temperature: float
    ) -> tuple[DreamState, Prediction]:
        """Step a few dreams at a time, shared by the threads."""
        count = len(actions)
        size = min(self._chunk_size, -(-count // self.threads))

        def step(rows: slice) -> tuple[DreamState, Prediction]:
            return self.rollout.step(state.select(rows), actions[rows], uniforms[rows], temperature)

        if size == count:
            return step(slice(count))
        chunks = [slice(start, start + size) for start in range(0, count, size)]
        states, predictions = zip(*self._map_chunks(step, chunks), strict=True)
        return DreamState.concatenate(states), Prediction(*map(torch.cat, zip(*predictions, strict=True)))

    def _map_images(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        chunks = images.split(self._chunk_size)
        return torch.cat(self._map_chunks(lambda chunk: function(chunk.to(self.device)).cpu(), chunks))

    def _map_chunks(self, function: Callable[[Any], Any], chunks: Iterable[Any]) -> list[Any]:
        """Apply a function to all chunks in this world's threads; results are in order."""
        function = torch.no_grad()(function)  # new threads have gradients enabled
        return list(self._pool.map(function, chunks) if self.threads > 1 else map(function, chunks))

    @property
    def _chunk_size(self) -> int:
        return CHUNK_SIZES.get(self.device.type, CHUNK_SIZES["cuda"])

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads)


def _visual_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an environment that affect its images."""
    return {name: value for name, value in kwargs.items() if name not in ("objects", "render_mode", "reproducible")}


def _check_tensor(name: str, given: ArrayLike, dtype: str, shape: tuple[int | str, ...]) -> Tensor:
    """Convert an argument to a tensor and check it.

    Args:
        dtype: expected type, a key of DTYPE_CHECKS.
        shape: expected shape, in which letters stand for any size of 1 or more.

    Raises:
        ValueError: if the type or shape is wrong.
    """
    tensor = given if isinstance(given, Tensor) else _to_tensor(name, np.asarray(given))
    sizes = zip(tensor.shape, shape, strict=False)
    if (
        not DTYPE_CHECKS[dtype](tensor)
        or tensor.ndim != len(shape)
        or not all(size == expected or (isinstance(expected, str) and size) for size, expected in sizes)
    ):
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be {dtype} ({', '.join(map(str, shape))}), got {got} {tuple(tensor.shape)}")
    return tensor


def _to_tensor(name: str, given: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(given.copy())
    except TypeError as error:
        raise ValueError(f"{name} must be numbers, got {given.dtype}") from error
