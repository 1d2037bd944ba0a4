"""RLlib's module around an agent's network, and the runner that collects its steps."""

from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from agents.config import NetworkConfig
from agents.network import Network
from worldmodel import tensor_io

# Between the seeds of two runners. It is more than a run's environment steps, which are added to its seed when it is
# resumed; row b of a vector environment gets the runner's seed + b.
RUNNER_SEED_STRIDE = 15_485_863


class AgentModule(TorchRLModule, ValueFunctionAPI):
    """A :class:`Network` for RLlib; ``model_config`` has its sizes and the file of its weights."""

    def setup(self) -> None:
        """Build the network with the weights of its run."""
        self.network = Network(NetworkConfig(**self.model_config["network"]))
        tensor_io.load_weights(Path(self.model_config["weights"]), self.network)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.network.logits(self.network.features(batch[Columns.OBS]))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = self.network.features(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.network.logits(features), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Return the expected returns (B,) of a batch, from its features if they are given as ``embeddings``."""
        features = self.network.features(batch[Columns.OBS]) if embeddings is None else embeddings
        return self.network.values(features)


class SeededEnvRunner(SingleAgentEnvRunner):
    """An environment runner with one thread and seeds of its own, which passes errors on to the caller."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        torch.set_num_threads(1)
        super().__init__(*arguments, **settings)
        if self.config.seed is not None:
            self._seed = (self.config.seed + RUNNER_SEED_STRIDE * self.worker_index) % 2**31

    def sample(self, **settings: Any) -> Any:
        """Collect steps.

        Raises:
            ChildProcessError: if an environment fails, which RLlib reports as a RuntimeError without a message.
        """
        try:
            return super().sample(**settings)
        except RuntimeError as error:
            if error.__cause__ is None:
                raise
            cause = error.__cause__
            raise ChildProcessError(f"an environment failed: {type(cause).__name__}: {cause}") from error

    def apply(self, func: Any, *arguments: Any, **settings: Any) -> Any:
        """Return ``func(self, …)``; RLlib's own method silently ends the process if it raises."""
        return func(self, *arguments, **settings)
