"""Record episodes of a world: ``python -m worldmodel.collect --frames 10000 --store stores/doom``."""

import os

for _library in ("OMP", "OPENBLAS", "MKL"):  # before numpy loads: workers share the machine, one thread each
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from importlib.metadata import version  # noqa: E402
from typing import Any, Literal  # noqa: E402

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from worldmodel import config, environment  # noqa: E402
from worldmodel.data.episode import Episode  # noqa: E402
from worldmodel.data.store import Entry, EpisodeStore, Schema  # noqa: E402

LONGEST_HOLD = 12  # steps that the sticky policy holds one action at most
STICKY_WEIGHTS = {
    "forward": 4.0,
    "forward_look_left": 2.0,
    "forward_look_right": 2.0,
    "look_left": 1.5,
    "look_right": 1.5,
}
RESTARTS = 100  # of one worker, before the run gives up


def collect(
    store: str,
    env: str = "envs:Doom-v0",
    env_kwargs: dict[str, Any] = {},
    frames: int = 0,
    episodes: int = 0,
    workers: int = 0,
    policy: Literal["sticky", "random"] = "sticky",
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
        policy: sticky holds each action for 1 to 12 steps and prefers to move; random draws one every step.
        seed: of the worlds and the policies.
        longest: steps after which an episode that has not ended is cut off, and marked truncated.
        address: of a running Ray cluster; empty starts one here.
    """
    if (frames > 0) == (episodes > 0):
        raise ValueError(f"give either --frames or --episodes a positive number, got {frames} and {episodes}")
    recorder = Recorder(store, env, env_kwargs, policy, seed, longest)
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
        with tqdm(total=goal, initial=min(progress(), goal), unit=unit, smoothing=0.05) as bar:
            for entry in recording:
                there.record(entry)
                bar.update(min(progress(), goal) - bar.n)
                bar.set_postfix_str(f"{(there.frames - before) / (time.perf_counter() - start):.0f} frames/s")
    except KeyboardInterrupt:  # a world's engine may have got it first, and have failed
        print(f"stopped: {there.path} holds {len(there)} episodes, {there.frames} frames; run again to continue")
        raise
    new, seconds = there.frames - before, time.perf_counter() - start
    print(f"{there.path}: {len(there)} episodes, {there.frames} frames; {new} new ones at {new / seconds:.0f} frames/s")


class Recorder:
    """Plays episodes of one world and writes them to a store; made anew in every process that records."""

    def __init__(self, store: str, env: str, env_kwargs: dict, policy: str, seed: int, longest: int) -> None:
        self.settings = (store, env, env_kwargs, policy, seed, longest)
        self.env = environment.make(env, **env_kwargs)
        self.policy, self.seed, self.longest = policy, seed, longest
        engine = self.env.metadata.get("engine", f"gymnasium {version('gymnasium')}")
        schema = Schema(
            observation_shape=self.env.observation_space.shape,
            observation_dtype=str(self.env.observation_space.dtype),
            action_names=self.env.get_wrapper_attr("action_names"),
            environment=env,
            kwargs=env_kwargs,
            provenance={"policy": policy, "seed": seed, "longest": longest, "engine": engine},
        )
        self.store = EpisodeStore.create(store, schema)

    def record(self, number: int) -> Entry:
        """Play episode ``number`` and write its file; the index is the caller's."""
        world_seed, policy_seed = np.random.SeedSequence([self.seed, number]).generate_state(2)
        actions = act(self.policy, self.env.get_wrapper_attr("action_names"), np.random.default_rng(policy_seed))
        return self.store.write(number, play(self.env, actions, int(world_seed), self.longest))


def act(policy: str, action_names: tuple[str, ...], random: np.random.Generator) -> Iterator[int]:
    """The endless actions of a policy that does not look."""
    cumulated = np.cumsum([STICKY_WEIGHTS.get(name, 1.0) for name in action_names])
    cumulated /= cumulated[-1]
    while True:
        if policy == "random":
            yield int(random.integers(len(action_names)))
        else:
            action = int(cumulated.searchsorted(random.random(), side="right"))
            yield from [action] * int(random.integers(1, LONGEST_HOLD + 1))


def play(env: gym.Env, actions: Iterator[int], seed: int, longest: int) -> Episode:
    """Play one episode from ``env.reset(seed=seed)`` to its end, or for ``longest`` steps.

    A world that draws nothing after its last action says so with ``{"final_observation_missing": True}`` for that
    step's info: what it returns in its place is left out.
    """
    observations, taken, rewards = [env.reset(seed=seed)[0]], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        taken.append(next(actions))
        observation, reward, terminated, truncated, info = env.step(taken[-1])
        if not info.get("final_observation_missing"):
            observations.append(observation)
        rewards.append(reward)
        truncated = truncated or (len(taken) >= longest and not terminated)
    return Episode(np.stack(observations), np.array(taken), np.array(rewards, np.float64), terminated, truncated, seed)


def _record_in_actors(recorder: Recorder, numbers: Iterator[int], workers: int, address: str) -> Iterator[Entry]:
    """Record in Ray actors; an episode whose actor is killed is played again, from its own seed."""
    import ray
    from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

    recorder.env.close()  # it has told the schema, and a running game must not be forked
    ray.init(address=address or "local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
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
