"""An agent's net as RLlib sees it, and the process that plays for it."""

from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from agents.network import Network, NetworkConfig
from worldmodel import checkpoint

SEEDS_APART = 100_000  # between two runners: row b of a vector of worlds takes the runner's seed + b


class AgentModule(TorchRLModule, ValueFunctionAPI):
    """A :class:`Network` for RLlib; ``model_config`` holds its sizes and the file of its weights."""

    def setup(self) -> None:
        """Build the net, with the weights that its run holds."""
        self.network = Network(NetworkConfig(**self.model_config["network"]))
        checkpoint.load_weights(Path(self.model_config["weights"]), self.network)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.network.logits(self.network.features(batch[Columns.OBS]))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = self.network.features(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.network.logits(features), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """The expected returns (B,) of a batch, or of its features."""
        features = self.network.features(batch[Columns.OBS]) if embeddings is None else embeddings
        return self.network.values(features)


class Runner(SingleAgentEnvRunner):
    """Plays on one thread, in worlds that no other runner plays in, and lets errors reach who asked."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        torch.set_num_threads(1)
        super().__init__(*arguments, **settings)
        if self._seed is not None:
            self._seed = self.config.seed + SEEDS_APART * self.worker_index

    def sample(self, **settings: Any) -> Any:
        """Play.

        Raises:
            ChildProcessError: if a world fails; RLlib tells that as a RuntimeError without a message.
        """
        try:
            return super().sample(**settings)
        except RuntimeError as error:
            if error.__cause__ is None:
                raise
            cause = error.__cause__
            raise ChildProcessError(f"a world failed: {type(cause).__name__}: {cause}") from error

    def apply(self, func: Any, *arguments: Any, **settings: Any) -> Any:
        """Call ``func(self, …)``; RLlib's own ends the process without a word where that fails."""
        return func(self, *arguments, **settings)
