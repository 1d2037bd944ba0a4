"""Dreams as Gymnasium worlds: a world model steps in place of the engine that it learnt from."""

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from worldmodel.dream import read
from worldmodel.episodes.segments import split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models.dream_state import Memory
from worldmodel.models.precision import Precision
from worldmodel.world_model import DEFAULT, WorldModel

LONGEST_HISTORY = 1000
HORIZON = 200  # steps of a dream, if nothing else is said


def observation_space(world: WorldModel, observation: str, history: int) -> gym.spaces.Box:
    """What a world shows: the last ``history`` pictures, the oldest first.

    Codes are (h, w) int32, or (history, h, w) of several. Frames are (H, W, 3·history) uint8, with the history in the
    channels, as Stable-Baselines3's ``CnnPolicy`` and RLlib's convolutional nets take a picture.

    Raises:
        ValueError: for another observation or no history.
    """
    if observation not in ("codes", "frame"):
        raise ValueError(f"observation must be 'codes' or 'frame', got {observation!r}")
    if not isinstance(history, int) or not 1 <= history <= LONGEST_HISTORY:
        raise ValueError(f"history must be 1 or more, and {LONGEST_HISTORY} at most, got {history}")
    config = world.dynamics.config
    if observation == "frame":
        height, width, channels = world.decode(torch.zeros(1, *config.grid, dtype=torch.int64)).shape[1:]
        return gym.spaces.Box(0, 255, (height, width, channels * history), np.uint8)
    return gym.spaces.Box(0, config.codes - 1, (*(history,) * (history > 1), *config.grid), np.int32)


def show(world: WorldModel, codes: Tensor, observation: str, history: int) -> np.ndarray:
    """The last pictures (B, history, h, w) as observations of :func:`observation_space`, with a leading B."""
    if observation == "codes":
        shown = codes.numpy().astype(np.int32)
        return shown if history > 1 else shown[:, 0]
    return stack(world.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]).numpy())


def stack(frames: np.ndarray) -> np.ndarray:
    """Frames (…, history, H, W, 3) with the history in the channels, (…, H, W, 3·history)."""
    moved = np.moveaxis(frames, -4, -2)  # (…, H, W, history, 3)
    return np.ascontiguousarray(moved.reshape(*moved.shape[:-2], -1))


class DreamVectorEnv(VectorEnv):
    """B dreams that step together, in one call of the world model.

    A dream begins with real frames of a random place in a random episode. Rewards are those that the prior expects; an
    episode terminates by chance, with the probability that the prior gives, and is truncated at the horizon. A row
    that ended begins anew at the next step (NEXT_STEP), whose action it ignores. Row b has generators of its own,
    seeded with ``seed + b``, and shows what :class:`DreamEnv` shows under that seed.

    Args:
        num_envs: B.
        world: a shipped world's name, or the run folder of a prior.
        horizon: steps after which a dream is truncated.
        observation: codes, or frames decoded from them.
        history: pictures shown at once, the oldest first; of frames in the channels, (H, W, 3·history).
        start: begin from the clips that come with a shipped world, or from training episodes of ``store``; by default
            from the clips if the world has any.
        store: folder of recorded episodes; by default the one that the world was trained on.
        context: real frames that a dream begins with.
        temperature: of the codes; above 1 is wilder, which keeps an agent from relying on the model's mistakes.
        device: of the world model; observations are on the CPU.
        threads: of the world model on the CPU.
        precision: of the world model: auto, float32 or bfloat16.
        render_mode: ``"rgb_array"`` lets :meth:`render` decode the present frames.

    Raises:
        ValueError: for a setting that does not fit, or a world that cannot act.
        FileNotFoundError: if there is no such world or store.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8.75, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        world: str = DEFAULT,
        horizon: int = HORIZON,
        observation: Literal["codes", "frame"] = "codes",
        history: int = 1,
        start: Literal["", "shipped", "store"] = "",
        store: str = "",
        context: int = 6,
        temperature: float = 1.0,
        device: str = "cpu",
        threads: int = 1,
        precision: Precision = "float32",
        render_mode: str | None = None,
    ) -> None:
        for name in ("num_envs", "horizon", "context", "threads"):
            if not isinstance(locals()[name], int | np.integer) or locals()[name] < 1:
                raise ValueError(f"{name} must be a whole number of 1 or more, got {locals()[name]}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.num_envs, self.horizon, self.observation, self.history = num_envs, horizon, observation, history
        self.context, self.temperature, self.render_mode = context, temperature, render_mode
        self.world = WorldModel.load(world, device, threads, precision)
        self.action_names = self.world.action_names
        if not self.world.dynamics.config.actions or not self.world.dynamics.config.context:
            raise ValueError(f"the world {world} was trained without actions or context: an agent can do nothing there")
        self.single_observation_space = observation_space(self.world, observation, history)
        self.single_action_space = gym.spaces.Discrete(len(self.action_names))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._starts = self._beginnings(start, store)
        self._randoms = [np.random.default_rng() for _ in range(num_envs)]
        self._chances = [torch.Generator() for _ in range(num_envs)]
        self._memory: Memory | None = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin all dreams anew.

        Args:
            seed: row b gets ``seed + b``, or one seed each; None goes on with the generators of the last seed.
            options: ignored.
        """
        if isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one number or one for each of {self.num_envs} dreams, got {len(seeds)}")
        # a list, so that a seed that is none changes no row
        self._randoms = [
            random if own is None else np.random.default_rng(own)
            for own, random in zip(seeds, self._randoms, strict=True)
        ]
        everyone = list(range(self.num_envs))
        self._memory, self._recent = self._begin(everyone)
        self._steps, self._over = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, bool)
        return show(self.world, self._recent, self.observation, self.history), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take actions (B,); returns observations, rewards (B,) float64, terminated (B,), truncated (B,), {}."""
        if self._memory is None:
            raise RuntimeError("call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions must be {self.num_envs} integers, got {actions.dtype} {actions.shape}")
        if actions.min() < 0 or actions.max() >= len(self.action_names):
            raise ValueError(f"actions must be in [0, {len(self.action_names)}), got {actions.tolist()}")
        fresh = np.flatnonzero(self._over)
        live = ~self._over
        noise = torch.zeros(self.num_envs, *self.world.dynamics.config.grid)
        for row in np.flatnonzero(live):
            noise[row] = self.world.uniforms([self._chances[row]])[0]
        taken = torch.as_tensor(actions, dtype=torch.int64)
        self._memory, codes, rewards, ends = self.world.step(self._memory, taken, noise, self.temperature)
        self._recent = torch.cat([self._recent[:, 1:], codes.cpu()[:, None]], 1)
        chance = np.array([self._randoms[row].random() if live[row] else 1.0 for row in range(self.num_envs)])
        terminated = chance < ends.cpu().numpy()
        self._steps += 1
        truncated = live & ~terminated & (self._steps >= self.horizon)
        if len(fresh):
            memory, recent = self._begin(list(fresh))
            self._memory = self._memory.replaced(torch.as_tensor(fresh, device=self.world.device), memory)
            self._recent[fresh], self._steps[fresh] = recent, 0
        self._over = terminated | truncated
        observations = show(self.world, self._recent, self.observation, self.history)
        return observations, rewards.cpu().numpy().astype(np.float64) * live, terminated, truncated, {}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The present frames, B of (H, W, 3) uint8."""
        if self.render_mode is None or self._memory is None:
            return None
        return tuple(self.world.decode(self._recent[:, -1]).numpy())

    def _beginnings(self, start: str, store: str) -> EpisodeStore:
        """The store whose episodes dreams begin from."""
        if start not in ("", "shipped", "store"):
            raise ValueError(f"start must be 'shipped' or 'store', got {start!r}")
        shipped = self.world.run / "context"
        if start == "shipped" and not shipped.exists():
            raise ValueError(f"the world {self.world.run} comes with no clips; use start='store'")
        if start == "shipped" and store:
            raise ValueError(f"start='shipped' leaves the store {store} unused; give one of the two")
        if start == "store" and not store and shipped.exists():
            raise ValueError(f"the world {self.world.run} comes without its training data; name a store of your own")
        episodes = EpisodeStore(store or self.world.clips)
        self.world.check_actions(episodes.schema.action_names)
        self._entries = episodes.entries if not store and shipped.exists() else split(episodes)[0]
        self._entries = [entry for entry in self._entries if entry.observations >= self.context]
        if not self._entries:
            raise ValueError(f"{episodes.path} has no episode of {self.context} frames or more to begin from")
        return episodes

    def _begin(self, rows: list[int]) -> tuple[Memory, Tensor]:
        """Dreams for some rows: their memory, and their last pictures (len(rows), history, h, w)."""
        frames, actions = [], []
        for row in rows:
            random = self._randoms[row]
            entry = self._entries[random.integers(len(self._entries))]
            place = int(random.integers(entry.observations - self.context + 1))
            real, taken = read(self._starts, entry.number, place, self.context)
            frames.append(real)
            actions.append(taken)
            self._chances[row].manual_seed(int(random.integers(2**63)))
        codes = self.world.encode(torch.cat(frames)).unflatten(0, (len(rows), self.context))
        memory = self.world.start_from_codes(codes, torch.stack(actions))
        seen = codes[:, -self.history :]
        return memory, torch.cat([seen[:, :1].expand(-1, self.history - seen.shape[1], -1, -1), seen], 1)


class DreamEnv(gym.Env):
    """One dream: :class:`DreamVectorEnv` of one row, with its arguments."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8.75}

    def __init__(self, **settings: Any) -> None:
        self._dream = DreamVectorEnv(1, **settings)
        self.world, self.render_mode = self._dream.world, self._dream.render_mode
        self.action_names = self._dream.action_names
        self.observation_space, self.action_space = (
            self._dream.single_observation_space,
            self._dream.single_action_space,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a dream."""
        super().reset(seed=seed)
        observations, info = self._dream.reset(seed=seed)
        self._over = False
        return observations[0], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action; an episode that is over needs :meth:`reset`."""
        if getattr(self, "_over", True):
            raise RuntimeError("the dream is over, or has not begun: call reset() before step()")
        observations, rewards, terminated, truncated, info = self._dream.step([action])
        self._over = bool(terminated[0] or truncated[0])
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """The present frame, (H, W, 3) uint8."""
        frames = self._dream.render()
        return None if frames is None else frames[0]
