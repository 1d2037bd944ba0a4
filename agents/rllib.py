"""RLlib, held at arm's length: it is given a run and worlds, and gives back steps, metrics and weights."""

import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from torch import Tensor

from worldmodel import checkpoint, config

if TYPE_CHECKING:
    from agents.train import AgentConfig

LEARNER = {"policy_loss": "policy_loss", "vf_loss": "value_loss", "entropy": "entropy"}
RUNS_APART = 10_000_019  # runners and rows of worlds count seeds on from the run's, up to where another run begins
LEARNER |= {"vf_explained_var": "value_explained", "gradients_default_optimizer_global_norm": "gradient_norm"}


class Algorithm:
    """PPO on one run; use :func:`started`."""

    def __init__(self, run: Path, algorithm: Any, train: "AgentConfig") -> None:
        self.run, self.algorithm, self.train = run, algorithm, train

    def resume(self) -> int:
        """Go back to the last checkpoint, if there is one, and return the steps that were taken until then."""
        done = saved(self.run)
        if done:
            self.algorithm.restore_from_path(str(self.run / "checkpoint" / str(done)))
        return done

    def iterate(self) -> tuple[int, int, dict[str, float]]:
        """Play a batch and learn from it.

        Returns:
            The number of this iteration, the steps taken in it, and its metrics.
        """
        began = time.perf_counter()
        result = self.algorithm.train()
        if not (played := result.get("env_runners")):
            raise ChildProcessError("the environment runners returned nothing")
        metrics = {"return": played.get("episode_return_mean"), "length": played.get("episode_len_mean")}
        learnt = result["learners"]["default_policy"]
        metrics |= {name: learnt.get(theirs) for theirs, name in LEARNER.items()}
        steps = int(played["num_env_steps_sampled"])
        metrics["steps_per_second"] = steps / (time.perf_counter() - began)
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        for name in set(LEARNER.values()) & values.keys():
            if not math.isfinite(values[name]):  # RLlib leaves such an update out, without a word
                raise FloatingPointError(f"{name} is {values[name]}: lower train.learning_rate")
        return result["training_iteration"], steps, values

    def weights(self) -> dict[str, Tensor]:
        """The state of the agent's :class:`~agents.network.Network`."""
        return self.algorithm.get_module().network.state_dict()

    def save(self, done: int) -> None:
        """Write the agent and a checkpoint after ``done`` steps; the one before goes when this one is whole."""
        checkpoint.write_tensors(self.run / "model.safetensors", self.weights())
        target = self.run / "checkpoint" / str(done)
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f".{done}")
        shutil.rmtree(temporary, ignore_errors=True)
        self.algorithm.save_to_path(str(temporary))
        os.rename(temporary, target)
        for path in target.parent.iterdir():
            if path != target:
                shutil.rmtree(path)


@contextmanager
def started(run: Path, env: str, env_kwargs: dict[str, Any], train: "AgentConfig") -> Iterator[Algorithm]:
    """RLlib's PPO on a run's net, quietly; Ray stops with it, unless it ran before.

    Raises:
        ChildProcessError: if a world fails, or a process that plays in it does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        import ray.rllib
        from ray.exceptions import RayError, RayTaskError

        logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)  # errors come as exceptions, and need not come twice
        mine = not ray.is_initialized()
        if mine:
            quiet = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
            ray.init(address="local", num_cpus=max(1, train.runners), num_gpus=train.gpus or None, **quiet)
            config.heed_sigterm()
        algorithm = None
        try:
            algorithm = settings(run, env, env_kwargs, train).build_algo()
            check_vector(algorithm, env)
            yield Algorithm(run, algorithm, train)
        except RayTaskError as error:
            known = isinstance(error.cause, ChildProcessError)
            raise ChildProcessError(str(error.cause) if known else f"a runner failed: {error.cause!r}") from error
        except RayError as error:
            raise ChildProcessError(
                f"a runner died; run the command again to go on: {str(error).splitlines()[0]}"
            ) from error
        finally:
            if algorithm:
                algorithm.stop()
            if mine:
                ray.shutdown()


def settings(run: Path, env: str, env_kwargs: dict[str, Any], train: "AgentConfig") -> Any:
    """The configuration of RLlib's PPO."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from agents.rllib_module import AgentModule, Runner

    network = checkpoint.read_config(run)["model"]
    weights = run / "model.safetensors"
    return (
        PPOConfig()
        .environment(env, env_config=env_kwargs)
        .env_runners(
            env_runner_cls=Runner,
            num_env_runners=train.runners,
            num_envs_per_env_runner=train.num_envs,
            gym_env_vectorize_mode="vector_entry_point" if vector_class(env) else "sync",
            rollout_fragment_length="auto",
        )
        .training(
            lr=train.learning_rate,
            gamma=train.gamma,
            lambda_=train.gae_lambda,
            entropy_coeff=train.entropy,
            clip_param=train.clip,
            grad_clip=train.gradient_clip,
            train_batch_size_per_learner=train.batch,
            minibatch_size=train.minibatch,
            num_epochs=train.epochs,
            use_kl_loss=False,
            vf_clip_param=float("inf"),
            vf_loss_coeff=0.5 / network["value_scale"] ** 2,  # as if rewards were of size one
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=AgentModule, model_config={"network": network, "weights": str(weights)}
            )
        )
        .learners(num_gpus_per_learner=train.gpus)
        .debugging(seed=train.seed * RUNS_APART % 2**31 + saved(run))  # a resumed run does not play the same again
        .fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=False)
    )


def saved(run: Path) -> int:
    """The steps after which a run's last checkpoint was written; 0 if there is none."""
    return max((int(path.name) for path in (run / "checkpoint").glob("*") if path.name.isdigit()), default=0)


def check_vector(algorithm: Any, env: str) -> None:
    """Make sure that worlds which can step together do: RLlib builds single ones without a word where it is unsure."""
    wanted = vector_class(env)
    made = algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.env and type(runner.env.unwrapped))
    for kind in filter(None, made):
        assert not wanted or f"{kind.__module__}:{kind.__name__}" == wanted, f"{kind} steps {env}, not {wanted}"


def vector_class(env: str) -> str | None:
    """The class of many such environments that step together, if there is one."""
    return gym.spec(env.split(":")[-1]).vector_entry_point  # the module before the colon has been imported
