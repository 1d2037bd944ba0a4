"""Record episodes of an environment: ``python -m worldmodel.collect --frames 10000 --store stores/doom``."""

import os

for _library in ("OMP", "OPENBLAS", "MKL"):  # before numpy is imported: one thread per worker
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import importlib  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import closing, contextmanager  # noqa: E402
from typing import Any, Protocol  # noqa: E402

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from worldmodel import config, env_wrappers, files, ray_cluster, shipped  # noqa: E402
from worldmodel.checks import check_seed  # noqa: E402
from worldmodel.episodes.episode import Episode  # noqa: E402
from worldmodel.episodes.recording import MAX_EPISODE_STEPS, Recording, describe, episode_seeds  # noqa: E402
from worldmodel.episodes.store import Entry, EpisodeStore  # noqa: E402

MAX_HOLD_STEPS = 12  # longest hold of an action by the sticky policy
STICKY_WEIGHTS = {
    "forward": 4.0,
    "forward_look_left": 2.0,
    "forward_look_right": 2.0,
    "look_left": 1.5,
    "look_right": 1.5,
}
PROGRESS_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}{postfix}]"  # without tqdm's own rate
MAX_WORKER_RESTARTS = 100
DEFAULT_POLICY_CLASS = "agents.policy:Policy"
SCRIPTED_POLICIES = ("sticky", "random", "mixed")


class Policy(Protocol):
    """An agent that chooses actions from frames; ``Policy.load(run)`` loads one.

    The run's config.yaml names the class as ``policy: module:Name``. It is only imported if it is
    :data:`DEFAULT_POLICY_CLASS` or the user names it as well.

    With an optional attribute ``frame_shape``, (H, W, 3), environments with frames of another shape are refused.

    Attributes:
        action_names: names of actions 0, 1, ….
        digest: hash of the weights.
    """

    action_names: tuple[str, ...]
    digest: str

    def start(self, seed: int) -> None:
        """Start an episode whose random choices depend only on the seed."""
        ...

    def act(self, frame: np.ndarray) -> int:
        """Return the action to take after a frame (H, W, 3) uint8."""
        ...


def collect(
    store: str,
    env: str = "envs:Doom-v0",
    env_kwargs: dict[str, Any] = {},
    frames: int = 0,
    episodes: int = 0,
    workers: int = 0,
    policy: str = "sticky",
    policy_class: str = DEFAULT_POLICY_CLASS,
    epsilon: float = 0.0,
    seed: int = 0,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    address: str = "",
) -> None:
    """Record episodes of an environment into a store, until the store holds the requested total.

    Episode n depends only on the seed and n, not on which worker records it. A stopped or killed run can be continued
    by running the same command again; no episode is recorded twice or incompletely. One process records into a store at
    a time.

    Args:
        store: folder to record into.
        env: Gymnasium id of the environment, with the module that registers it before a colon.
        env_kwargs: arguments of the environment; --env.NAME VALUE is short for --env_kwargs.NAME VALUE.
        frames: total number of frames that the store should hold; give either this or --episodes.
        episodes: total number of episodes that the store should hold.
        workers: number of Ray actors that record, or 0 to record in this process.
        policy: sticky (hold each action for 1 to 12 steps, mostly moving forward), random (a new action every step),
            mixed (sticky or random, chosen per episode), a shipped agent by name, or the run folder of an agent.
        policy_class: class of the agent, as module:Name.
        epsilon: fraction of steps, in [0, 1), in which the sticky policy overrides an agent's action.
        seed: random seed of the environment and the policy.
        max_episode_steps: number of steps after which an episode is truncated.
        address: address of a running Ray cluster; empty starts a local one.
    """
    if (frames > 0) == (episodes > 0):
        raise ValueError(f"give either --frames or --episodes a positive number, got {frames} and {episodes}")
    if workers < 0 or max_episode_steps < 1:
        raise ValueError(
            f"--workers must be 0 or more and --max_episode_steps 1 or more, got {workers} and {max_episode_steps}"
        )
    check_seed(seed)
    if policy not in SCRIPTED_POLICIES and policy not in shipped.names(shipped.AGENTS):
        policy = os.path.abspath(policy)
    recorder = Recorder(store, env, env_kwargs, policy, seed, max_episode_steps, epsilon, policy_class)
    with closing(recorder.env), _recording_alone(recorder.store) as recorded:
        _record_missing(recorder, recorded, frames, episodes, workers, address)


def _record_missing(
    recorder: "Recorder", recorded: EpisodeStore, frames: int, episodes: int, workers: int, address: str
) -> None:
    """Record what a store lacks until it holds ``frames`` or ``episodes``, with a progress bar and a last line."""
    unit, goal = ("frame", frames) if frames else ("episode", episodes)
    before, start = recorded.num_frames, time.perf_counter()

    def progress() -> int:
        return recorded.num_frames if frames else len(recorded)

    def total() -> str:
        return f"{recorded.path} holds {len(recorded)} episodes, {recorded.num_frames} frames"

    def missing() -> Iterator[int]:
        """Yield the numbers of missing episodes until the goal is reached."""
        number = 0
        while number < episodes or recorded.num_frames < frames:
            if number not in recorded:
                yield number
            number += 1

    recording = (
        (recorder.record(number) for number in missing())
        if workers == 0
        else _record_in_actors(recorder, missing(), workers, address)
    )
    try:
        with tqdm(total=goal, initial=min(progress(), goal), unit=unit, bar_format=PROGRESS_BAR) as bar:
            for entry in recording:
                recorded.add_to_index(entry)
                bar.update(min(progress(), goal) - bar.n)
                bar.set_postfix_str(f"{(recorded.num_frames - before) / (time.perf_counter() - start):.0f} frames/s")
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped: {total()}; run again to continue")
        raise
    new, seconds = recorded.num_frames - before, time.perf_counter() - start
    print(f"{total()}; {new} new frames at {new / seconds:.0f} frames/s")


@contextmanager
def _recording_alone(store: EpisodeStore) -> Iterator[EpisodeStore]:
    """Hold the lock of a store's recorder until the block or the process ends; returns the store as it is by then.

    Raises:
        ValueError: if another process holds it, which would write the same episodes.
    """
    try:
        with files.locked(store.path / "collect.lock", wait=False):
            yield EpisodeStore(store.path)
    except BlockingIOError:
        raise ValueError(
            f"another process is recording into {store.path}; wait for it, stop it, or use another --store"
        ) from None


class Recorder:
    """Plays episodes of an environment and writes them to a store; each recording process has its own recorder."""

    def __init__(
        self,
        store: str,
        env: str,
        env_kwargs: dict,
        policy: str,
        seed: int,
        max_episode_steps: int,
        epsilon: float = 0.0,
        policy_class: str = DEFAULT_POLICY_CLASS,
    ) -> None:
        self.settings = (store, env, env_kwargs, policy, seed, max_episode_steps, epsilon, policy_class)
        self.policy, self.seed, self.max_episode_steps, self.epsilon = policy, seed, max_episode_steps, epsilon
        if not 0 <= epsilon < 1 or (epsilon and policy in SCRIPTED_POLICIES):
            raise ValueError(f"--epsilon must be in [0, 1), and 0 unless --policy is an agent, got {epsilon}")
        self.agent, provenance = None, {"policy": policy}
        if policy not in SCRIPTED_POLICIES:
            self.agent, provenance = load_policy(policy, epsilon, policy_class)
        env = env_wrappers.canonical_id(env)
        self.env = env_wrappers.make_env(env, **env_kwargs)
        provenance = {**provenance, "seed": seed, "max_episode_steps": max_episode_steps}
        with env_wrappers.closed_on_error(self.env):
            names, shape = self.env.get_wrapper_attr("action_names"), self.env.observation_space.shape
            if self.agent:
                check_agent(self.agent, policy, names, shape)
            self.store = EpisodeStore.create(store, describe(self.env, env, env_kwargs, provenance))

    def record(self, number: int) -> Entry:
        """Play episode ``number`` and write its file; the caller adds it to the index."""
        env_seed, policy_seed = episode_seeds(self.seed, number)
        names, random = self.env.get_wrapper_attr("action_names"), np.random.default_rng(policy_seed)
        if self.agent:
            self.agent.start(policy_seed)
            choose = add_exploration(self.agent, self.epsilon, names, random)
        else:
            actions = scripted_actions(self.policy, names, random)
            choose = lambda frame: next(actions)  # noqa: E731
        return self.store.write(number, play_episode(self.env, choose, env_seed, self.max_episode_steps))


def load_policy(run: str, epsilon: float, policy_class: str = DEFAULT_POLICY_CLASS) -> tuple[Policy, dict[str, Any]]:
    """Load a shipped agent or that of a run; return it and its provenance, which keeps a store from mixing agents.

    Raises:
        ValueError: if the run is not an agent's, or its class is not ``policy_class``.
    """
    try:
        values = config.read_yaml(shipped.find_agent(run) / "config.yaml")
    except FileNotFoundError:
        values = {}
    name = values.get("policy") if isinstance(values, dict) else None
    if not name:
        known = ", ".join([*SCRIPTED_POLICIES, *shipped.names(shipped.AGENTS)])
        raise ValueError(
            f"--policy must be {known} or the run folder of an agent, got {run}; train one with python -m agents.train"
        )
    if name != policy_class:  # never import a module just because a file names it
        raise ValueError(
            f"{run} is an agent of the class {name}, expected {policy_class}; if you trust that class, pass "
            f"--policy_class {name}"
        )
    module, _, attribute = name.partition(":")
    try:
        policy = getattr(importlib.import_module(module), attribute).load(run)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--policy_class {name} cannot be imported: {error}") from error
    return policy, {"policy": name, "weights": policy.digest, "epsilon": epsilon}


def check_agent(
    agent: Policy, name: str, action_names: Sequence[str], frame_shape: tuple[int, ...] | None = None
) -> None:
    """Check that an agent has an environment's actions and acts on its frames, as far as both are known.

    Raises:
        ValueError: naming the difference.
    """
    if tuple(agent.action_names) != tuple(action_names):
        raise ValueError(f"the agent {name} knows the actions {agent.action_names}, the environment has {action_names}")
    known = getattr(agent, "frame_shape", None)
    if known and frame_shape and tuple(frame_shape) != tuple(known):
        raise ValueError(f"the agent {name} acts on frames {known}, the environment has {frame_shape}")


def add_exploration(
    agent: Policy, epsilon: float, action_names: tuple[str, ...], random: np.random.Generator
) -> Callable[[np.ndarray], int]:
    """Return an agent's ``act`` with a fraction ``epsilon`` of the steps overridden by holds of the sticky policy."""
    mean_hold = (MAX_HOLD_STEPS + 1) / 2
    start_prob = epsilon / (
        epsilon + mean_hold * (1 - epsilon)
    )  # a hold starts so often that epsilon of steps are held
    held: list[int] = []

    def choose(frame: np.ndarray) -> int:
        action = agent.act(frame)  # even if overridden, so that the agent has seen every frame
        if not held and random.random() < start_prob:
            action_to_hold = next(scripted_actions("sticky", action_names, random))
            held.extend([action_to_hold] * int(random.integers(1, MAX_HOLD_STEPS + 1)))
        return held.pop() if held else action

    return choose


def scripted_actions(policy: str, action_names: tuple[str, ...], random: np.random.Generator) -> Iterator[int]:
    """Yield the actions of a policy that ignores the frames, without end."""
    cumulative = np.cumsum([STICKY_WEIGHTS.get(name, 1.0) for name in action_names])
    cumulative /= cumulative[-1]
    if policy == "mixed":
        policy = "random" if random.random() < 0.5 else "sticky"
    while True:
        if policy == "random":
            yield int(random.integers(len(action_names)))
        else:
            action = int(cumulative.searchsorted(random.random(), side="right"))
            yield from [action] * int(random.integers(1, MAX_HOLD_STEPS + 1))


def play_episode(
    env: gym.Env, choose_action: Callable[[np.ndarray], int], seed: int, max_episode_steps: int
) -> Episode:
    """Play one episode from ``env.reset(seed=seed)`` to its end, or for ``max_episode_steps`` steps.

    Args:
        choose_action: function from the current observation to the next action.

    What the environment can say in ``info`` is described at :class:`Recording`.
    """
    recording = Recording(env, seed)
    while not recording.over:
        recording.step(choose_action(recording.observation), max_episode_steps)
    return recording.episode()


def _record_in_actors(recorder: Recorder, numbers: Iterator[int], workers: int, address: str) -> Iterator[Entry]:
    """Record in Ray actors; an episode whose actor is killed is played again with the same seed."""
    import ray
    from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

    recorder.env.close()  # only needed for the schema; a running game must not be forked
    settings = (os.path.abspath(recorder.settings[0]), *recorder.settings[1:])
    actor_class = ray.remote(num_cpus=1, max_restarts=MAX_WORKER_RESTARTS)(Recorder)
    playing: dict[ray.ObjectRef, tuple[Any, int]] = {}
    retries: list[int] = []
    try:
        ray_cluster.connect(workers, address)
        idle = [actor_class.remote(*settings) for _ in range(workers)]
        while True:
            while idle and (number := retries.pop() if retries else next(numbers, None)) is not None:
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
            except RayActorError:  # killed, and now restarting
                retries.append(number)
            except RayTaskError as error:
                raise error.cause from error  # as without Ray
            else:
                yield entry
            idle.append(actor)
    finally:
        ray.shutdown()
