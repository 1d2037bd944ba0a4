"""A trained agent, without Ray: it is shown frames and names actions."""

from pathlib import Path

import numpy as np
import torch

from agents.network import Network, NetworkConfig
from envs.dream import stack
from worldmodel import checkpoint, config
from worldmodel.models.vqvae import VQVAE


class Policy:
    """Sees the world through a VQ-VAE and acts by a net; the only chance is the seed of :meth:`start`.

    Args:
        network: what it acts by.
        vqvae: whose codes it sees.
        action_names: what actions 0, 1, … are called.
        history: pictures that it sees at once.
        greedy: take the likeliest action, and not one drawn by its probability.
        digest: names the weights.
    """

    def __init__(
        self,
        network: Network,
        vqvae: VQVAE,
        action_names: tuple[str, ...],
        history: int = 1,
        greedy: bool = False,
        digest: str = "",
    ) -> None:
        self.network, self.vqvae, self.action_names = network, vqvae, tuple(action_names)
        self.history, self.greedy, self.digest = history, greedy, digest
        self.start(0)

    @classmethod
    def load(cls, run: str | Path, greedy: bool = False) -> "Policy":
        """The agent of a run folder.

        Raises:
            FileNotFoundError: if there is no run.
            ValueError: if it is not that of an agent, or is damaged.
        """
        run = Path(run)
        values = read(run)
        network = Network(config.build(NetworkConfig, values["model"], run / "config.yaml"))
        checkpoint.load_weights(run / "model.safetensors", network)
        vqvae, data = checkpoint.load_vqvae(run / "vqvae"), values["data"]
        return cls(network.eval(), vqvae, data["action_names"], data["history"], greedy, checkpoint.digest(run))

    def start(self, seed: int) -> None:
        """Begin an episode."""
        self._generator = torch.Generator().manual_seed(seed)
        self._recent = torch.zeros(0)

    def act(self, frame: np.ndarray) -> int:
        """The action to take after a frame (H, W, 3) uint8 of the real world."""
        return self.choose(self.observe(frame))

    @torch.no_grad()
    def observe(self, frame: np.ndarray) -> np.ndarray:
        """What ``Encoded-v0`` would show: the frame, and those before it, as codes or through the VQ-VAE."""
        codes = self.vqvae.encode(torch.from_numpy(frame.copy())[None])  # (1, h, w)
        past = self._recent[1:] if len(self._recent) else codes.expand(self.history - 1, -1, -1)
        self._recent = torch.cat([past, codes])
        if not self.network.config.codes:
            return stack(self.vqvae.decode(self._recent).numpy())
        return (self._recent if self.history > 1 else self._recent[0]).numpy()

    @torch.no_grad()
    def choose(self, observation: np.ndarray) -> int:
        """The action to take after an observation of ``Dream-v0`` or ``Encoded-v0``."""
        logits, _ = self.network(torch.from_numpy(observation)[None])
        if self.greedy:
            return int(logits.argmax())
        return int(torch.multinomial(logits[0].softmax(0), 1, generator=self._generator))


def read(run: Path) -> dict:
    """The config.yaml of an agent's run.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if it is not that of an agent.
    """
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is the run of no agent; train one with python -m agents.train --run {run}")
    values = checkpoint.read_config(run)
    if values["kind"] != "agent":
        raise ValueError(f"{run} must be the run of an agent, it is that of a {values['kind']}")
    return values
