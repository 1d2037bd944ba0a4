"""A trained agent, which acts on frames or encoded observations without Ray."""

from collections import deque
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from agents.config import NetworkConfig
from agents.network import Network
from envs.observations import stack_frames
from worldmodel import checkpoint, config, tensor_io
from worldmodel.models.vqvae import VQVAE
from worldmodel.shipped import find_agent, find_world


class Policy:
    """Encodes frames with a VQ-VAE and chooses actions with a network; all randomness comes from :meth:`start`'s seed.

    Args:
        network: the agent's network.
        vqvae: the VQ-VAE that encodes frames.
        action_names: names of actions 0, 1, ….
        history: number of frames per observation.
        greedy: take the most probable action instead of a sampled one.
        digest: identifier of the weights.
        action_repeat: number of frames that :meth:`act` holds each action for.
    """

    def __init__(
        self,
        network: Network,
        vqvae: VQVAE,
        action_names: tuple[str, ...],
        history: int = 1,
        greedy: bool = False,
        digest: str = "",
        action_repeat: int = 1,
    ) -> None:
        self.network, self.vqvae, self.action_names = network, vqvae, tuple(action_names)
        self.history, self.greedy, self.digest, self.action_repeat = history, greedy, digest, action_repeat
        self.start(0)

    @classmethod
    def load(cls, run: str | Path, greedy: bool = False) -> "Policy":
        """Load a shipped agent by name, or that of a run folder.

        Raises:
            FileNotFoundError: if there is no such agent, or not the world whose VQ-VAE it shares.
            ValueError: if it is not an agent's run, or damaged.
        """
        run = find_agent(run)
        values = read_agent_config(run)
        network = Network(config.build(NetworkConfig, values["model"], run / "config.yaml"))
        tensor_io.load_weights(run / "model.safetensors", network)
        vqvae, data = checkpoint.load_vqvae(vqvae_folder(run)), values["data"]
        names, history, repeat = data["action_names"], data["history"], data.get("action_repeat", 1)
        return cls(network.eval(), vqvae, names, history, greedy, tensor_io.digest(run), repeat)

    @cached_property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of the frames (H, W, 3) that :meth:`act` takes."""
        *_, height, width = self.network.config.observation_shape
        if not self.network.config.codebook_size:  # reconstructed frames (H, W, 3·history)
            return (*self.network.config.observation_shape[:2], 3)
        return tuple(self.vqvae.decode(torch.zeros(1, height, width, dtype=torch.int64)).shape[1:])

    def start(self, seed: int) -> None:
        """Start an episode."""
        self._generator = torch.Generator().manual_seed(seed)
        self._recent: deque[np.ndarray | torch.Tensor] = deque(maxlen=self.history)  # frames, or codes once encoded
        self._num_frames, self._held = 0, 0

    def act(self, frame: np.ndarray) -> int:
        """Return the action to take after a frame (H, W, 3) uint8 of the real environment."""
        self._recent.append(frame.copy())
        if self._num_frames % self.action_repeat == 0:
            self._held = self.choose(self._observation())
        self._num_frames += 1
        return self._held

    @torch.no_grad()
    def _observation(self) -> np.ndarray:
        """Return the observation of ``Encoded-v0``: the latest frames as codes, or reconstructed."""
        new = {index: frame for index, frame in enumerate(self._recent) if isinstance(frame, np.ndarray)}
        encoded = self.vqvae.encode(torch.from_numpy(np.stack(list(new.values()))))
        for index, frame_codes in zip(new, encoded, strict=True):
            self._recent[index] = frame_codes
        recent = [torch.as_tensor(frame_codes) for frame_codes in self._recent]
        codes = torch.stack([recent[0]] * (self.history - len(recent)) + recent)  # (history, h, w)
        if not self.network.config.codebook_size:
            return stack_frames(self.vqvae.decode(codes).numpy())
        return (codes if self.history > 1 else codes[0]).numpy()

    @torch.no_grad()
    def choose(self, observation: np.ndarray) -> int:
        """Return the action to take after an observation of ``Dream-v0`` or ``Encoded-v0``."""
        logits, _ = self.network(torch.from_numpy(observation)[None])
        if self.greedy:
            return int(logits.argmax())
        return int(torch.multinomial(logits[0].softmax(0), 1, generator=self._generator))


def vqvae_folder(run: Path) -> Path:
    """Return the folder of the VQ-VAE whose codes an agent sees: its own, or that of the shipped world that it names.

    Raises:
        FileNotFoundError: if there is no such world.
    """
    values = read_agent_config(run)
    return (find_world(values["world"]) if "world" in values else run) / "vqvae"


def read_agent_config(run: Path) -> dict:
    """Read the config.yaml of an agent's folder.

    Raises:
        ValueError: if it is not an agent's.
    """
    values = checkpoint.read_config(run)
    if values["kind"] != "agent":
        raise ValueError(f"{run} must be the run of an agent, it is that of a {values['kind']}")
    return values
