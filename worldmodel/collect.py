"""Record episodes of a world: ``python -m worldmodel.collect --frames 10000 --store stores/doom``."""

import os

for _library in ("OMP", "OPENBLAS", "MKL"):  # before numpy loads: workers share the machine, one thread each
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import importlib  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from importlib.metadata import version  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Protocol  # noqa: E402

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from worldmodel import config, env_wrappers  # noqa: E402
from worldmodel.checks import check_seed  # noqa: E402
from worldmodel.episodes.episode import Episode, Objects  # noqa: E402
from worldmodel.episodes.store import Entry, EpisodeStore, Schema  # noqa: E402

LONGEST_HOLD = 12  # steps that the sticky policy holds one action at most
STICKY_WEIGHTS = {
    "forward": 4.0,
    "forward_look_left": 2.0,
    "forward_look_right": 2.0,
    "look_left": 1.5,
    "look_right": 1.5,
}
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}{postfix}]"  # the rate is that of frames
RESTARTS = 100  # of one worker, before the run gives up
OURS = "agents.policy:Policy"
BLIND = ("sticky", "random", "mixed")


class Policy(Protocol):
    """An agent that acts by what it sees; ``Policy.load(run)`` makes one.

    Its run's config.yaml names the class as ``policy: module:Name``, which is imported if it is :data:`OURS` or if the
    user names it, too.

    Attributes:
        action_names: what actions 0, 1, … are called.
        digest: names its weights.
    """

    action_names: tuple[str, ...]
    digest: str

    def start(self, seed: int) -> None:
        """Begin an episode, in which the seed is the only chance."""

    def act(self, frame: np.ndarray) -> int:
        """The action to take after a frame (H, W, 3) uint8."""


def collect(
    store: str,
    env: str = "envs:Doom-v0",
    env_kwargs: dict[str, Any] = {},
    frames: int = 0,
    episodes: int = 0,
    workers: int = 0,
    policy: str = "sticky",
    policy_class: str = OURS,
    explore: float = 0.0,
    seed: int = 0,
    longest: int = 4000,
    address: str = "",
) -> None:
    """Record episodes of a world into a store; run it again to continue towards the asked total.

    Episode number n is a function of the seed and n alone, whoever records it: however many workers there are and
    however often they are killed, no episode comes twice and none is half there.

    Args:
        store: folder to record into.
        env: Gymnasium id, with the module that registers it before a colon.
        env_kwargs: what to make it with; --env.scenario my_way_home is short for --env_kwargs.scenario my_way_home.
        frames: go on until the store holds this many frames; either this or --episodes.
        episodes: go on until it holds this many episodes.
        workers: record in this process (0) or in this many Ray actors.
        policy: sticky holds each action for 1 to 12 steps and prefers to move; random draws one every step; mixed is
            either, an episode each; the run folder of an agent lets that act.
        policy_class: module:Name of the class of an agent of your own.
        explore: share of the steps in which an agent is overruled by the sticky policy, an action at a time.
        seed: of the worlds and the policies.
        longest: steps after which an episode that has not ended is cut off, and marked truncated.
        address: of a running Ray cluster; empty starts one here.
    """
    if (frames > 0) == (episodes > 0):
        raise ValueError(f"give either --frames or --episodes a positive number, got {frames} and {episodes}")
    if workers < 0 or longest < 1:
        raise ValueError(f"--workers must be 0 or more and --longest 1 or more, got {workers} and {longest}")
    check_seed(seed)
    policy = policy if policy in BLIND else os.path.abspath(policy)
    recorder = Recorder(store, env, env_kwargs, policy, seed, longest, explore, policy_class)
    there = recorder.store
    unit, goal = ("frame", frames) if frames else ("episode", episodes)
    before, start = there.frames, time.perf_counter()

    def progress() -> int:
        return there.frames if frames else len(there)

    def missing() -> Iterator[int]:
        """Numbers of episodes yet to record, for as long as the goal is not reached."""
        number = 0
        while number < episodes or there.frames < frames:
            if number not in there:
                yield number
            number += 1

    recording = (
        (recorder.record(number) for number in missing())
        if workers == 0
        else _record_in_actors(recorder, missing(), workers, address)
    )
    try:
        with tqdm(total=goal, initial=min(progress(), goal), unit=unit, bar_format=BAR) as bar:
            for entry in recording:
                there.record(entry)
                bar.update(min(progress(), goal) - bar.n)
                bar.set_postfix_str(f"{(there.frames - before) / (time.perf_counter() - start):.0f} frames/s")
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped: {there.path} holds {len(there)} episodes, {there.frames} frames; run again to continue")
        raise
    new, seconds = there.frames - before, time.perf_counter() - start
    print(f"{there.path}: {len(there)} episodes, {there.frames} frames; {new} new ones at {new / seconds:.0f} frames/s")


class Recorder:
    """Plays episodes of one world and writes them to a store; made anew in every process that records."""

    def __init__(
        self,
        store: str,
        env: str,
        env_kwargs: dict,
        policy: str,
        seed: int,
        longest: int,
        explore: float = 0.0,
        policy_class: str = OURS,
    ) -> None:
        self.settings = (store, env, env_kwargs, policy, seed, longest, explore, policy_class)
        self.policy, self.seed, self.longest, self.explore = policy, seed, longest, explore
        if not 0 <= explore < 1 or (explore and policy in BLIND):
            raise ValueError(f"--explore must be in [0, 1), and 0 without an agent, got {explore}")
        self.agent, facts = (None, {"policy": policy}) if policy in BLIND else load(policy, explore, policy_class)
        self.env = env_wrappers.make(env, **env_kwargs)
        names = self.env.get_wrapper_attr("action_names")
        if self.agent and tuple(self.agent.action_names) != tuple(names):
            raise ValueError(f"the agent {policy} knows the actions {self.agent.action_names}, the world has {names}")
        engine = self.env.metadata.get("engine", f"gymnasium {version('gymnasium')}")
        schema = Schema(
            observation_shape=self.env.observation_space.shape,
            observation_dtype=str(self.env.observation_space.dtype),
            action_names=names,
            environment=env,
            kwargs=env_kwargs,
            provenance={**facts, "seed": seed, "longest": longest, "engine": engine},
        )
        self.store = EpisodeStore.create(store, schema)

    def record(self, number: int) -> Entry:
        """Play episode ``number`` and write its file; the index is the caller's."""
        world_seed, policy_seed = np.random.SeedSequence([self.seed, number]).generate_state(2)
        names, random = self.env.get_wrapper_attr("action_names"), np.random.default_rng(policy_seed)
        if self.agent:
            self.agent.start(int(policy_seed))
            choose = exploring(self.agent, self.explore, names, random)
        else:
            actions = act(self.policy, names, random)
            choose = lambda frame: next(actions)  # noqa: E731
        return self.store.write(number, play(self.env, choose, int(world_seed), self.longest))


def load(run: str, explore: float, policy_class: str = OURS) -> tuple[Policy, dict[str, Any]]:
    """The agent of a run, and what a store says of it: the weights are named, so that other ones do not mix in.

    Raises:
        ValueError: if it is no agent's, or one of another class.
    """
    path = Path(run) / "config.yaml"
    values = config.read_yaml(path) if path.is_file() else {}
    name = values.get("policy") if isinstance(values, dict) else None
    if not name:
        raise ValueError(
            f"--policy must be {', '.join(BLIND)} or the run folder of an agent, got {run}; "
            "train one with python -m agents.train"
        )
    if name != policy_class:  # nothing is imported because a file says so
        raise ValueError(
            f"{run} is an agent of the class {name}, expected {policy_class}; if you trust it, name it yourself: "
            f"--policy_class {name}"
        )
    module, _, attribute = name.partition(":")
    try:
        policy = getattr(importlib.import_module(module), attribute).load(run)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--policy_class {name} cannot be imported: {error}") from error
    return policy, {"policy": name, "weights": policy.digest, "explore": explore}


def exploring(
    agent: Policy, share: float, action_names: tuple[str, ...], random: np.random.Generator
) -> Callable[[np.ndarray], int]:
    """An agent that is overruled in a share of its steps, by actions that are held as the sticky policy holds them."""
    mean = (LONGEST_HOLD + 1) / 2
    begin = share / (share + mean * (1 - share))  # chance that an action of the agent's is the first to be overruled
    held: list[int] = []

    def choose(frame: np.ndarray) -> int:
        action = agent.act(frame)  # even where it is overruled: it remembers what it saw
        if not held and random.random() < begin:
            first = next(act("sticky", action_names, random))
            held.extend([first] * int(random.integers(1, LONGEST_HOLD + 1)))
        return held.pop() if held else action

    return choose


def act(policy: str, action_names: tuple[str, ...], random: np.random.Generator) -> Iterator[int]:
    """The endless actions of a policy that does not look."""
    cumulated = np.cumsum([STICKY_WEIGHTS.get(name, 1.0) for name in action_names])
    cumulated /= cumulated[-1]
    if policy == "mixed":
        policy = "random" if random.random() < 0.5 else "sticky"
    while True:
        if policy == "random":
            yield int(random.integers(len(action_names)))
        else:
            action = int(cumulated.searchsorted(random.random(), side="right"))
            yield from [action] * int(random.integers(1, LONGEST_HOLD + 1))


def play(env: gym.Env, choose: Callable[[np.ndarray], int], seed: int, longest: int) -> Episode:
    """Play one episode from ``env.reset(seed=seed)`` to its end, or for ``longest`` steps.

    ``choose`` is shown the present observation, and names the action to take.

    A world that draws nothing after its last action says so with ``{"final_observation_missing": True}`` for that
    step's info: what it returns in its place is left out. One that knows what is in view gives each info ``objects``,
    (name, identity, box) as in :class:`worldmodel.episodes.episode.Objects`; one whose seed does not fix the episode
    says ``{"reproducible": False}`` in the info of its reset.
    """
    observation, info = env.reset(seed=seed)
    reproducible = bool(info.get("reproducible", True))
    observations, taken, rewards, seen = (
        [np.array(observation)],
        [],
        [],
        [info.get("objects")],
    )  # a copy: it may be reused
    terminated = truncated = False
    while not (terminated or truncated):
        taken.append(choose(observation))
        observation, reward, terminated, truncated, info = env.step(taken[-1])
        if not info.get("final_observation_missing"):
            observations.append(np.array(observation))
            seen.append(info.get("objects"))
        rewards.append(reward)
        truncated = truncated or (len(taken) >= longest and not terminated)
    objects = None if seen[0] is None else Objects.gather(seen)
    rewards = np.array(rewards, np.float64)
    return Episode(np.stack(observations), np.array(taken), rewards, terminated, truncated, seed, objects, reproducible)


def _record_in_actors(recorder: Recorder, numbers: Iterator[int], workers: int, address: str) -> Iterator[Entry]:
    """Record in Ray actors; an episode whose actor is killed is played again, from its own seed."""
    import ray
    from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

    recorder.env.close()  # it has told the schema, and a running game must not be forked
    ray.init(address=address or "local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    config.heed_sigterm()
    settings = (os.path.abspath(recorder.settings[0]), *recorder.settings[1:])
    actor_class = ray.remote(num_cpus=1, max_restarts=RESTARTS)(Recorder)
    idle = [actor_class.remote(*settings) for _ in range(workers)]
    playing: dict[ray.ObjectRef, tuple[Any, int]] = {}
    again: list[int] = []
    try:
        while True:
            while idle and (number := again.pop() if again else next(numbers, None)) is not None:
                actor = idle.pop()
                playing[actor.record.remote(number)] = (actor, number)
            if not playing:
                return
            (done, *_), _ = ray.wait(list(playing))
            actor, number = playing.pop(done)
            try:
                entry = ray.get(done)
            except ActorDiedError as error:
                raise ChildProcessError(f"a worker died and could not be restarted: {error}") from error
            except RayActorError:  # killed, and being restarted
                again.append(number)
            except RayTaskError as error:
                raise error.cause from error  # what it would be without Ray
            else:
                yield entry
            idle.append(actor)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    config.run(collect)
