"""Small nets that judge pairs of frames: which action lay between them, and whether they were dreamed."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from worldmodel.episodes.segments import split
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.clips import CONTEXT, Clips, stretches
from worldmodel.metrics import interval
from worldmodel.world_model import WorldModel

RUN = 5  # frames that are read in a row to make pairs of
WIDTHS = (32, 64, 96, 128)
BATCH = 64


class Judge(nn.Module):
    """A convolutional net over pairs of frames (N, 2, H, W, 3) uint8, to logits (N, classes)."""

    def __init__(self, height: int, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size, wider in zip((9, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(size, wider, 5 if size == 9 else 3, stride=2, padding=2 if size == 9 else 1)]
            layers += [nn.BatchNorm2d(wider), nn.ReLU()]
            height, width = (height + 1) // 2, (width + 1) // 2
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(wider * height * width, classes))

    def forward(self, pairs: Tensor) -> Tensor:
        before, after = (pairs.float() / 255 - 0.5).movedim(-1, 2).unbind(1)  # (N, 3, H, W) each
        return self.net(torch.cat([before, after, after - before], 1))


def train_judge(pairs: Tensor, labels: Tensor, classes: int, epochs: int = 4, seed: int = 0) -> Judge:
    """Teach a judge to tell ``labels`` (N,) from ``pairs`` (N, 2, H, W, 3)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Judge(*pairs.shape[2:4], classes).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(judge.parameters(), 1e-3, weight_decay=0.01)
        steps = epochs * (len(pairs) // BATCH + 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        with tqdm(total=steps, unit="step", desc="judge", leave=False) as bar:
            for _ in range(epochs):
                for rows in torch.randperm(len(pairs)).tensor_split(steps // epochs):
                    if len(rows) > 1:  # a batch norm needs two
                        loss = F.cross_entropy(judge(pairs[rows]), labels[rows])
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                    schedule.step()
                    bar.update()
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, pairs: Tensor) -> Tensor:
    """Probabilities (N, classes)."""
    return torch.cat([judge(part).softmax(-1) for part in pairs.split(BATCH)])


class Pairs(NamedTuple):
    """Neighbouring frames of training episodes."""

    recorded: Tensor  # (N, 2, H, W, 3) uint8
    shown: Tensor  # (N, 2, H, W, 3) uint8, as the VQ-VAE shows them
    actions: Tensor  # (N,) int64, those between


def real_pairs(world: WorldModel, store: EpisodeStore, count: int, seed: int) -> Pairs:
    """Random ones to learn from, ``count`` or up to three fewer."""
    frames, actions, _ = stretches(store, split(store)[0], max(1, count // (RUN - 1)), RUN, seed)
    shown = world.decode(world.encode(frames.flatten(0, 1))).view_as(frames)
    return Pairs(neighbours(frames), neighbours(shown), actions.flatten())


def neighbours(frames: Tensor) -> Tensor:
    """Films (N, T, H, W, 3) -> the pairs in them (N·(T-1), 2, H, W, 3)."""
    return torch.stack([frames[:, :-1], frames[:, 1:]], 2).flatten(0, 1)


def inverse_dynamics(
    world: WorldModel, pairs: Pairs, clips: Clips, dreams: Tensor, horizon: int = 10, seed: int = 0
) -> dict:
    """Does the action do what it says: can a net that learnt actions from real pairs read them off dreamed ones?

    It learns from ``pairs``, half as recorded and half as the VQ-VAE shows them, and is asked about the
    first ``horizon`` steps of the clips, and of the dreams (N, S, T, h, w) that took the same actions.

    Returns:
        Its accuracy, an interval over episodes, on ``real`` pairs, on real pairs as shown by the ``vqvae`` and on
        ``dreamed`` ones; ``majority``, what naming the most frequent action every time would score; ``ratio`` of
        dreamed to real, and ``skill``, the same ratio of what lies above the majority. ``confusion`` has (true, named)
        frequencies by row, for real and dreamed pairs.
    """
    names = world.action_names
    mixed = torch.cat([pairs.recorded[::2], pairs.shown[1::2]])
    judge = train_judge(mixed, torch.cat([pairs.actions[::2], pairs.actions[1::2]]), len(names), seed=seed)
    horizon = min(horizon, dreams.shape[2])
    taken, episodes = clips.to_take[:, :horizon].flatten(), clips.episodes.repeat_interleave(horizon)
    real = clips.frames[:, CONTEXT - 1 : CONTEXT + horizon]
    seen = world.decode(world.encode(real.flatten(0, 1))).view_as(real)
    dreamt = world.decode(dreams[:, 0, :horizon].flatten(0, 1)).view_as(clips.truth[:, :horizon])
    films = {"real": real, "vqvae": seen, "dreamed": torch.cat([seen[:, :1], dreamt], 1)}
    named = {name: verdicts(judge, neighbours(film)).argmax(-1) for name, film in films.items()}
    result: dict = {name: interval((answer == taken).float(), episodes) for name, answer in named.items()}
    majority = float(torch.bincount(taken).max() / len(taken))
    real_mean, dreamed_mean = result["real"]["mean"], result["dreamed"]["mean"]
    return result | {
        "majority": majority,
        "ratio": dreamed_mean / max(real_mean, 1e-9),
        "skill": (dreamed_mean - majority) / max(real_mean - majority, 1e-9),
        "confusion": {name: confusion(taken, named[name], len(names)) for name in ("real", "dreamed")},
    }


def confusion(true: Tensor, named: Tensor, classes: int) -> list[list[float]]:
    """How often each true class (rows) was named as each (columns); rows of classes that never came are 0."""
    counts = torch.bincount(true * classes + named, minlength=classes**2).view(classes, classes).float()
    return (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist()


def teach_to_tell_dreams(real: Tensor, dreamed: Tensor, seed: int = 0) -> Judge:
    """A judge that tells dreamed pairs (class 1) from real ones as the VQ-VAE shows them (class 0)."""
    labels = torch.cat([torch.zeros(len(real)), torch.ones(len(dreamed))]).long()
    return train_judge(torch.cat([real, dreamed]), labels, 2, seed=seed)


def log_odds(judge: Judge, pairs: Tensor) -> Tensor:
    """How sure a judge of two classes is that pairs (N, 2, H, W, 3) are dreamed: (N,) logits."""
    return torch.logit(verdicts(judge, pairs)[:, 1], 1e-6)
