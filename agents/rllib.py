"""RLlib's PPO behind a small interface: a run folder and an environment in, metrics and weights out."""

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
from gymnasium.envs.registration import VectorEnvCreator
from torch import Tensor

from worldmodel import checkpoint, cli, tensor_io

if TYPE_CHECKING:
    from agents.config import AgentConfig

LEARNER_METRICS = {  # RLlib's name: ours
    "policy_loss": "policy_loss",
    "vf_loss": "value_loss",
    "entropy": "entropy",
    "vf_explained_var": "value_explained",
    "gradients_default_optimizer_global_norm": "gradient_norm",
}
RUN_SEED_STRIDE = 10_000_019  # between the seeds of two runs: runners and rows of vector environments count up from it


class Algorithm:
    """PPO on one run; made by :func:`start_algorithm`."""

    def __init__(self, run: Path, algorithm: Any, train: "AgentConfig") -> None:
        self.run, self.algorithm, self.train = run, algorithm, train

    def resume(self) -> int:
        """Load the last checkpoint, if there is one, and return its number of environment steps."""
        done = last_checkpoint_step(self.run)
        if done:
            self.algorithm.restore_from_path(str(self.run / "checkpoint" / str(done)))
            self._write_weights()  # the program may have been killed between the checkpoint and the weights
        return done

    def train_iteration(self) -> tuple[int, int, dict[str, float]]:
        """Collect a batch and train on it.

        Returns:
            The number of the iteration, its environment steps and its metrics.

        Raises:
            FloatingPointError: if a metric of the learner is not finite.
        """
        start = time.perf_counter()
        result = self.algorithm.train()
        if not (sampled := result.get("env_runners")):
            raise ChildProcessError("the environment runners returned nothing")
        metrics = {"return": sampled.get("episode_return_mean"), "length": sampled.get("episode_len_mean")}
        learner = result["learners"]["default_policy"]
        metrics |= {name: learner.get(rllib_name) for rllib_name, name in LEARNER_METRICS.items()}
        steps = int(sampled["num_env_steps_sampled"])
        metrics["steps_per_second"] = steps / (time.perf_counter() - start)
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        for name in set(LEARNER_METRICS.values()) & values.keys():
            if not math.isfinite(values[name]):  # RLlib silently skips such updates
                raise FloatingPointError(f"{name} is {values[name]}: lower train.learning_rate")
        return result["training_iteration"], steps, values

    def weights(self) -> dict[str, Tensor]:
        """Return the state of the agent's :class:`~agents.network.Network`."""
        return self.algorithm.get_module().network.state_dict()

    def save(self, done: int) -> None:
        """Write a checkpoint after ``done`` steps and the agent's weights, then remove older checkpoints."""
        target = self.run / "checkpoint" / str(done)
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f".{done}")
        shutil.rmtree(temporary, ignore_errors=True)
        self.algorithm.save_to_path(str(temporary))
        os.rename(temporary, target)
        self._write_weights()
        for path in target.parent.iterdir():
            if path != target:
                shutil.rmtree(path)

    def _write_weights(self) -> None:
        tensor_io.write_tensors(self.run / "model.safetensors", self.weights())


@contextmanager
def start_algorithm(run: Path, env: str, env_kwargs: dict[str, Any], train: "AgentConfig") -> Iterator[Algorithm]:
    """Start RLlib's PPO on a run's network, with Ray's output silenced; Ray is stopped at the end if this started it.

    Raises:
        ChildProcessError: if an environment or the process of a runner fails.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        import ray.rllib
        from ray.exceptions import RayError, RayTaskError

        logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)  # errors are raised as exceptions, too
        owns_ray = not ray.is_initialized()
        if owns_ray:
            quiet = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
            ray.init(address="local", num_cpus=max(1, train.num_env_runners), num_gpus=train.num_gpus or None, **quiet)
            cli.exit_on_sigterm()
        algorithm = None
        try:
            algorithm = ppo_config(run, env, env_kwargs, train).build_algo()
            check_vectorized(algorithm, env)
            yield Algorithm(run, algorithm, train)
        except RayTaskError as error:
            known = isinstance(error.cause, ChildProcessError)
            raise ChildProcessError(str(error.cause) if known else f"a runner failed: {error.cause!r}") from error
        except RayError as error:
            raise ChildProcessError(
                f"a runner died; run the command again to continue: {str(error).splitlines()[0]}"
            ) from error
        finally:
            if algorithm:
                algorithm.stop()
            if owns_ray:
                ray.shutdown()


def ppo_config(run: Path, env: str, env_kwargs: dict[str, Any], train: "AgentConfig") -> Any:
    """Return the configuration of RLlib's PPO."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from agents.rllib_module import AgentModule, SeededEnvRunner

    network = checkpoint.read_config(run)["model"]
    weights = run / "model.safetensors"
    return (
        PPOConfig()
        .environment(env, env_config=env_kwargs)
        .env_runners(
            env_runner_cls=SeededEnvRunner,
            num_env_runners=train.num_env_runners,
            num_envs_per_env_runner=train.num_envs,
            gym_env_vectorize_mode="vector_entry_point" if vector_entry_point(env) else "sync",
            rollout_fragment_length="auto",
        )
        .training(
            lr=train.learning_rate,
            gamma=train.gamma,
            lambda_=train.gae_lambda,
            entropy_coeff=train.ent_coef,
            clip_param=train.clip_coef,
            grad_clip=train.max_grad_norm,
            train_batch_size_per_learner=train.batch_size,
            minibatch_size=train.minibatch_size,
            num_epochs=train.update_epochs,
            use_kl_loss=False,
            vf_clip_param=float("inf"),
            vf_loss_coeff=0.5 / network["value_scale"] ** 2,  # as if returns had magnitude 1
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=AgentModule, model_config={"network": network, "weights": str(weights)}
            )
        )
        .learners(num_gpus_per_learner=train.num_gpus)
        # a resumed run must not repeat its episodes
        .debugging(seed=train.seed * RUN_SEED_STRIDE % 2**31 + last_checkpoint_step(run))
        .fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=False)
    )


def last_checkpoint_step(run: Path) -> int:
    """Return the environment steps of a run's last checkpoint, 0 if there is none."""
    return max((int(path.name) for path in (run / "checkpoint").glob("*") if path.name.isdigit()), default=0)


def check_vectorized(algorithm: Any, env: str) -> None:
    """Check that the environment's own vector class is used: RLlib may silently fall back to single environments.

    Raises:
        RuntimeError: if another class is used.
    """
    expected = vector_entry_point(env)
    made = algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.env and type(runner.env.unwrapped))
    for kind in filter(None, made):
        if expected and (name := f"{kind.__module__}:{kind.__name__}") != expected:
            raise RuntimeError(f"RLlib steps {env} with {name}, expected {expected}; try another version of Ray")


def vector_entry_point(env: str) -> str | VectorEnvCreator | None:
    """Return the entry point of an environment's own vector class, if it has one."""
    return gym.spec(env.split(":")[-1]).vector_entry_point  # the module before the colon is already imported
