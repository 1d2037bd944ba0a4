"""Dreams as Gymnasium environments: a world model steps in place of the engine that it was trained on."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.observations import make_observation_space, make_observations
from worldmodel.checks import check_temperature
from worldmodel.episodes.segments import read_clip, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.models.config import NUM_CONTEXT_FRAMES, Precision
from worldmodel.models.dream_state import DreamState
from worldmodel.shipped import DEFAULT_WORLD
from worldmodel.world_model import WorldModel

DEFAULT_HORIZON = 200  # imagined frames
NEAR_TERMINATION = (5, 40)  # frames


class DreamVectorEnv(VectorEnv):
    """B dreams that step together, in one call of the world model per step.

    Spaces and rewards are those of :class:`DreamEnv` with a leading B; its other arguments are the same. Row b has its
    own generators, seeded with ``seed + b``, and gives what :class:`DreamEnv` gives with that seed.

    Args:
        num_envs: number of dreams, B.
        autoreset_mode: Gymnasium's ``NEXT_STEP``, in which a row whose episode ended starts a new one at the next step
            and ignores its action, or ``SAME_STEP``, in which it starts at once and the info has its ``final_obs``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8.75, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        world: str = DEFAULT_WORLD,
        horizon: int = DEFAULT_HORIZON,
        observation: Literal["codes", "frame"] = "codes",
        history: int = 1,
        start: Literal["", "shipped", "store"] = "",
        store: str = "",
        context: int = NUM_CONTEXT_FRAMES,
        temperature: float = 1.0,
        device: str = "cpu",
        threads: int = 1,
        precision: Precision = "float32",
        render_mode: str | None = None,
        action_repeat: int = 1,
        termination_cost: float = 0.0,
        starts_near_termination: float = 0.0,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        counts = {"num_envs": num_envs, "horizon": horizon, "context": context, "threads": threads}
        counts["action_repeat"] = action_repeat
        for name, count in counts.items():
            if not isinstance(count, int | np.integer) or count < 1:
                raise ValueError(f"{name} must be a whole number of 1 or more, got {count}")
        check_temperature(temperature)
        if not 0 <= termination_cost < math.inf:
            raise ValueError(f"termination_cost must be 0 or more, got {termination_cost}")
        if not 0 <= starts_near_termination <= 1:
            raise ValueError(f"starts_near_termination must be in [0, 1], got {starts_near_termination}")
        if autoreset_mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise ValueError(f"autoreset_mode must be AutoresetMode.NEXT_STEP or SAME_STEP, got {autoreset_mode!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.num_envs, self.horizon, self.observation, self.history = num_envs, horizon, observation, history
        self.context, self.temperature, self.render_mode = context, temperature, render_mode
        self.action_repeat, self.termination_cost = action_repeat, termination_cost
        self.starts_near_termination, self.autoreset_mode = starts_near_termination, autoreset_mode
        self.world = WorldModel.load(world, device, threads, precision)
        self.metadata = {**self.metadata, "render_fps": self.world.frame_rate / action_repeat}
        self.metadata["autoreset_mode"] = autoreset_mode
        self.action_names = self.world.action_names
        if not self.world.obeys_actions:
            raise ValueError(
                f"the world {world} was trained without actions or context, so an agent has no effect on it"
            )
        self.single_observation_space = make_observation_space(self.world, observation, history)
        self.single_action_space = gym.spaces.Discrete(len(self.action_names))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._start_store = self._open_start_store(start, store)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._code_generators = [torch.Generator() for _ in range(num_envs)]
        self._state: DreamState | None = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start all dreams.

        Args:
            seed: an integer, of which row b gets ``seed + b``, or one for each row; None continues the random streams.
            options: ignored.
        """
        if isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one number or one for each of {self.num_envs} dreams, got {len(seeds)}")
        # all generators are made before any is replaced: an invalid seed changes no row
        self._generators = [
            old if own is None else np.random.default_rng(own) for own, old in zip(seeds, self._generators, strict=True)
        ]
        self._state, self._recent_codes = self._start_rows(list(range(self.num_envs)))
        self._steps, self._done = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, bool)
        return make_observations(self.world, self._recent_codes, self.observation, self.history), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take actions (B,); return observations, rewards (B,) float64, terminated (B,), truncated (B,), infos."""
        if self._state is None:
            raise RuntimeError("call reset() before step()")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions must be {self.num_envs} integers, got {actions.dtype} {actions.shape}")
        if actions.min() < 0 or actions.max() >= len(self.action_names):
            raise ValueError(f"actions must be in [0, {len(self.action_names)}), got {actions.tolist()}")
        fresh = np.flatnonzero(self._done)
        live, rewards, infos = ~self._done, np.zeros(self.num_envs), {}
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for _ in range(self.action_repeat):
            running = live & ~terminated & ~truncated
            if not running.any():
                break
            frame_rewards, ends = self._imagine_frame(actions, running)
            rewards += frame_rewards
            if not self.termination_cost:
                terminated |= ends
            truncated |= running & ~terminated & (ends | (self._steps >= self.horizon))
        self._restart(fresh)
        self._done = terminated | truncated
        observations = make_observations(self.world, self._recent_codes, self.observation, self.history)
        if self._done.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            ended = np.flatnonzero(self._done)
            final = np.full(self.num_envs, None, object)
            for row in ended:
                final[row] = observations[row].copy()
            infos = {"final_obs": final, "_final_obs": self._done, "final_info": {}, "_final_info": self._done}
            self._restart(ended)
            self._done = np.zeros(self.num_envs, bool)
            restarted = self._recent_codes[ended]
            observations[ended] = make_observations(self.world, restarted, self.observation, self.history)
        return observations, rewards, terminated, truncated, infos

    def _restart(self, rows: np.ndarray) -> None:
        """Start new dreams in some rows, (n,) int64."""
        if len(rows):
            assert self._state is not None  # step() has checked it
            state, recent_codes = self._start_rows(rows.tolist())
            self._state = self._state.replace_rows(torch.as_tensor(rows, device=self.world.device), state)
            self._recent_codes[rows], self._steps[rows] = recent_codes, 0

    def _imagine_frame(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Imagine the next frame of the running rows, (B,) bool; return its rewards (B,) and the rows that it ends."""
        uniforms, thresholds = torch.zeros(self.num_envs, *self.world.dynamics.config.grid), np.ones(self.num_envs)
        for row in np.flatnonzero(running):
            uniforms[row] = self.world.uniforms([self._code_generators[row]])[0]
            thresholds[row] = self._generators[row].random()
        assert self._state is not None  # step() has checked it
        self._state, codes, rewards, termination_probs = self.world.step(
            self._state, actions, uniforms, self.temperature
        )
        probs = termination_probs.cpu().numpy()
        frame_rewards, ends = rewards.cpu().numpy().astype(np.float64), thresholds < probs
        if self.termination_cost:
            frame_rewards -= self.termination_cost * probs
        rows = torch.from_numpy(running)
        self._recent_codes[rows] = torch.cat([self._recent_codes[rows, 1:], codes.cpu()[rows, None]], 1)
        self._steps += running
        return frame_rewards * running, ends & running

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the current frames, B of (H, W, 3) uint8, or None without a render mode."""
        if self.render_mode is None or self._state is None:
            return None
        return tuple(self.world.decode(self._recent_codes[:, -1]).numpy())

    def _open_start_store(self, start: str, store: str) -> EpisodeStore:
        """Return the store whose episodes dreams start from."""
        if start not in ("", "shipped", "store"):
            raise ValueError(f"start must be 'shipped' or 'store', got {start!r}")
        shipped = self.world.run / "context"
        if start == "shipped" and not shipped.exists():
            raise ValueError(f"the world {self.world.run} comes with no clips; use start='store'")
        if start == "shipped" and store:
            raise ValueError(f"start='shipped' leaves the store {store} unused; give one of the two")
        if start == "store" and not store and shipped.exists():
            raise ValueError(f"the world {self.world.run} comes without its training data; name a store of your own")
        episodes = EpisodeStore(store or self.world.clips_folder)
        self.world.check_actions(episodes.schema.action_names)
        if note := self.world.environment_mismatch(episodes.schema):
            warnings.warn(note, stacklevel=3)
        self._start_entries = episodes.entries if not store and shipped.exists() else split_held_out(episodes)[0]
        self._start_entries = [entry for entry in self._start_entries if entry.observations >= self.context]
        if not self._start_entries:
            raise ValueError(f"{episodes.path} has no episode of {self.context} frames or more to start from")
        self._terminated_entries = [entry for entry in self._start_entries if entry.terminated]
        if self.starts_near_termination and not self._terminated_entries:
            raise ValueError(f"starts_near_termination needs an episode that terminated, {episodes.path} has none")
        return episodes

    def _choose_start(self, random: np.random.Generator) -> tuple[int, int]:
        """Return the episode that a dream starts from, and its first frame there."""
        near = self.starts_near_termination and random.random() < self.starts_near_termination
        entries = self._terminated_entries if near else self._start_entries
        entry = entries[random.integers(len(entries))]
        last = entry.observations - self.context
        if near:
            return entry.number, max(0, last - int(random.integers(NEAR_TERMINATION[0], NEAR_TERMINATION[1] + 1)))
        return entry.number, int(random.integers(last + 1))

    def _start_rows(self, rows: list[int]) -> tuple[DreamState, Tensor]:
        """Start dreams in some rows; returns their state and their last codes (len(rows), history, h, w)."""
        frames, actions = [], []
        for row in rows:
            random = self._generators[row]
            number, offset = self._choose_start(random)
            clip = read_clip(self._start_store, number, offset, self.context)
            frames.append(clip[0])
            actions.append(clip[1])
            self._code_generators[row].manual_seed(int(random.integers(2**63)))
        codes = self.world.encode(torch.cat(frames)).unflatten(0, (len(rows), self.context))
        state = self.world.start_from_codes(codes, torch.stack(actions))
        recent = codes[:, -self.history :]
        return state, torch.cat([recent[:, :1].expand(-1, self.history - recent.shape[1], -1, -1), recent], 1)


class DreamEnv(gym.Env):
    """One dream, imagined by a world model from real start frames.

    Observations: the last ``history`` frames, the oldest first: codes as Box (h, w) int32, or (history, h, w) if
    history > 1; with ``observation="frame"``, decoded frames as Box (H, W, 3·history) uint8.
    Actions: Discrete, the recorded environment's, named by ``action_names``.
    Rewards are the model's expected rewards. An episode is ``terminated`` at random, with the model's probability of
    it, and ``truncated`` after ``horizon`` frames. Info is empty.

    Args:
        world: name of a shipped world, or run folder of a dynamics model.
        horizon: imagined frames after which a dream is truncated.
        observation: kind of the observations, ``"codes"`` or decoded ``"frame"``.
        history: number of frames per observation, 1 to 1000.
        start: source of the start frames: ``"shipped"``, the clips that come with a shipped world, or ``"store"``, the
            training episodes of ``store``; by default the clips if the world has any.
        store: folder of recorded episodes; by default the one that the world was trained on.
        context: number of real frames that a dream starts from.
        temperature: temperature of the sampled codes; above 1, dreams vary more, and the model's mistakes are more
            frequent.
        device: device of the world model; observations are on the CPU.
        threads: CPU threads of the world model.
        precision: precision of the world model: auto, float32 or bfloat16.
        render_mode: ``"rgb_array"`` to let :meth:`render` decode the current frame, or None.
        action_repeat: number of frames that an action is held for in each step, whose rewards are summed.
        termination_cost: if above 0, each frame's probability of termination, times this cost, is subtracted from its
            reward, and a dream that would be terminated is truncated instead, so that an agent bootstraps from the
            value of its last observation. A cost in every frame is learned faster than rare ends.
        starts_near_termination: fraction of dreams that start 5 to 40 frames before a recorded termination; the others
            start anywhere.

    Raises:
        ValueError: for a setting out of range, or a world model without actions or context.
        FileNotFoundError: if there is no such world or store.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8.75}

    def __init__(
        self,
        world: str = DEFAULT_WORLD,
        horizon: int = DEFAULT_HORIZON,
        observation: Literal["codes", "frame"] = "codes",
        history: int = 1,
        start: Literal["", "shipped", "store"] = "",
        store: str = "",
        context: int = NUM_CONTEXT_FRAMES,
        temperature: float = 1.0,
        device: str = "cpu",
        threads: int = 1,
        precision: Precision = "float32",
        render_mode: str | None = None,
        action_repeat: int = 1,
        termination_cost: float = 0.0,
        starts_near_termination: float = 0.0,
    ) -> None:
        self._dream = dream = DreamVectorEnv(
            num_envs=1,
            world=world,
            horizon=horizon,
            observation=observation,
            history=history,
            start=start,
            store=store,
            context=context,
            temperature=temperature,
            device=device,
            threads=threads,
            precision=precision,
            render_mode=render_mode,
            action_repeat=action_repeat,
            termination_cost=termination_cost,
            starts_near_termination=starts_near_termination,
        )
        self.world, self.render_mode, self.action_names = dream.world, render_mode, dream.action_names
        self.metadata = {**self.metadata, "render_fps": dream.metadata["render_fps"]}
        self.observation_space, self.action_space = dream.single_observation_space, dream.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a dream; returns the observation and an empty info."""
        super().reset(seed=seed)
        observations, info = self._dream.reset(seed=seed)
        self._done = False
        return observations[0], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action; once an episode is over, call :meth:`reset`."""
        if getattr(self, "_done", True):
            raise RuntimeError("the dream is over or was not started: call reset() before step()")
        observations, rewards, terminated, truncated, info = self._dream.step([action])
        self._done = bool(terminated[0] or truncated[0])
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """Return the current frame (H, W, 3) uint8, or None without a render mode."""
        frames = self._dream.render()
        return None if frames is None else frames[0]
