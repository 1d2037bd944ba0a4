"""Fit a world's reward and termination heads to more episodes: ``python -m worldmodel.train heads``."""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from worldmodel.checks import check_seed
from worldmodel.episodes.store import EpisodeStore
from worldmodel.shipped import find_world

if TYPE_CHECKING:
    from torch import Tensor, nn

    from worldmodel.episodes.schema import Entry
    from worldmodel.world_model import WorldModel

BATCH_SIZE = 512  # steps
REWARD_WEIGHT = 0.1  # of the squared error of rewards, relative to the nats of terminations
WEIGHT_DECAY = 0.05


class Steps(NamedTuple):
    """N recorded steps, and what the heads see of each."""

    features: "Tensor"  # (N, D) float32
    rewards: "Tensor"  # (N,) float32
    terminated: "Tensor"  # (N,) float32, 0 or 1


def heads(world: str, store: str, run: str, epochs: int = 5, learning_rate: float = 1e-3, seed: int = 0) -> None:
    """Fit the reward and termination heads of a world to recorded episodes, and leave the rest as it is.

    An agent visits states that random actions did not, where predicted terminations may be wrong. This takes minutes on
    a CPU: the rest of the model sees each step once. Every tenth episode is held out, and scored before and after.

    Args:
        world: name of a shipped world, or run folder of a dynamics model.
        store: folder of recorded episodes, of an agent and, so that nothing is forgotten, of the world's training.
        run: folder to write the new world to.
        epochs: number of passes over the steps.
        learning_rate: learning rate of AdamW.
        seed: random seed of the order of the steps.
    """
    import torch

    from worldmodel import tensor_io
    from worldmodel.episodes.encode import encode_store
    from worldmodel.episodes.segments import split_held_out
    from worldmodel.files import write_folder_atomically
    from worldmodel.world_model import WorldModel

    if epochs < 1 or not 0 < learning_rate < 1:
        raise ValueError(f"--epochs must be 1 or more and --learning_rate in (0, 1), got {epochs} and {learning_rate}")
    check_seed(seed)
    origin, target = find_world(world), Path(run)
    if target.exists():
        raise ValueError(f"--run {run} exists already; name a new folder")
    torch.set_num_threads(1)
    model = WorldModel.load(origin)
    if not model.dynamics.config.context_length:
        raise ValueError(f"--world {world} has no context, so it predicts neither rewards nor terminations")
    recorded = EpisodeStore(store)
    model.check_episodes(recorded.schema)
    codes = encode_store(recorded, origin / "vqvae", model.device)
    training, held_out = (read_steps(model, codes, entries) for entries in split_held_out(codes))
    head = model.dynamics.outcome
    print(f"before: {describe(model, head, held_out)}")
    fit(model, head, training, epochs, learning_rate, seed)
    print(f"after:  {describe(model, head, held_out)}")
    weights = tensor_io.read_tensors(origin / "model.safetensors")
    weights |= {f"outcome.{name}": tensor.contiguous() for name, tensor in head.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_folder_atomically(target) as folder:
        shutil.copytree(origin / "vqvae", folder / "vqvae")
        shutil.copyfile(origin / "config.yaml", folder / "config.yaml")
        if (origin / "context").exists():
            shutil.copytree(origin / "context", folder / "context")
        tensor_io.write_tensors(folder / "model.safetensors", weights)


def read_steps(world: "WorldModel", codes: EpisodeStore, entries: "list[Entry]") -> Steps:
    """Return all steps of some episodes of codes, with what the heads see when the past frames are the true ones."""
    import numpy as np
    import torch
    from tqdm import tqdm

    features, rewards, terminated = [], [], []
    dynamics = world.rollout.dynamics
    hook = dynamics.outcome.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    for entry in tqdm(entries, unit="episode", desc="features"):
        recorded, received = codes.steps(entry.number)
        observations = torch.from_numpy(codes.observations(entry.number, 0, entry.steps).astype(np.int64))
        with torch.no_grad():
            for prediction in dynamics.predict_episode(observations, torch.from_numpy(recorded.astype(np.int64))):
                features[-1] = features[-1][-len(prediction.rewards) :]  # without those of the context
        rewards.append(torch.from_numpy(received.astype(np.float32)))
        terminated.append(torch.zeros(entry.steps))
        terminated[-1][-1] = float(entry.terminated)
    hook.remove()
    return Steps(torch.cat(features), torch.cat(rewards), torch.cat(terminated))


def losses(world: "WorldModel", head: "nn.Module", steps: Steps) -> "tuple[Tensor, Tensor]":
    """Return the mean squared error of rewards in units of their scale, and the nats of terminations."""
    from torch.nn import functional as F

    config, (rewards, logits) = world.dynamics.config, head(steps.features).unbind(-1)
    reward_loss = F.mse_loss(rewards, steps.rewards / config.reward_unit)
    logits = logits - math.log(config.termination_pos_weight)  # as in Dynamics.predict_from_features
    return reward_loss, F.binary_cross_entropy_with_logits(logits, steps.terminated)


def fit(world: "WorldModel", head: "nn.Module", steps: Steps, epochs: int, learning_rate: float, seed: int) -> None:
    """Train the heads on batches of steps."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    head.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    for _ in range(epochs):
        for rows in torch.randperm(len(steps.rewards), generator=generator).split(BATCH_SIZE):
            reward_loss, termination_nats = losses(world, head, Steps(*(part[rows] for part in steps)))
            optimizer.zero_grad()
            (termination_nats + REWARD_WEIGHT * reward_loss).backward()
            optimizer.step()


def describe(world: "WorldModel", head: "nn.Module", steps: Steps) -> str:
    """Return a line with the heads' errors on some steps."""
    import torch

    from worldmodel.stats import auroc

    with torch.no_grad():
        reward_loss, nats = losses(world, head, steps)
        logits = head(steps.features)[:, 1] - math.log(world.dynamics.config.termination_pos_weight)
    predicted, true = float(logits.sigmoid().mean()), float(steps.terminated.mean())
    area = auroc(logits, steps.terminated > 0)
    return (
        f"termination_nats {nats:.4f}, AUROC {area:.3f}, terminations {predicted:.4f} predicted of {true:.4f} a step, "
        f"reward_error {reward_loss:.4g}"
    )
