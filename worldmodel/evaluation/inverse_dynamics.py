"""Small classifiers of frame pairs: which action was taken between them, and whether they were dreamed."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from worldmodel.episodes.segments import sample_segments, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.evaluation.clips import Clips
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.stats import bootstrap_interval
from worldmodel.world_model import WorldModel

SEGMENT_LENGTH = 5  # frames read together, which give one pair less
CHANNELS = (32, 64, 96, 128)
BATCH_SIZE = 64  # pairs


class PairClassifier(nn.Module):
    """Convolutional classifier of frame pairs (N, 2, H, W, 3) uint8 -> logits (N, classes)."""

    def __init__(self, height: int, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((9, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(before, after, 5 if before == 9 else 3, stride=2, padding=2 if before == 9 else 1)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
            height, width = (height + 1) // 2, (width + 1) // 2
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(after * height * width, classes))

    def forward(self, pairs: Tensor) -> Tensor:
        before, after = (pairs.float() / 255 - 0.5).movedim(-1, 2).unbind(1)  # (N, 3, H, W) each
        return self.net(torch.cat([before, after, after - before], 1))


def train_classifier(pairs: Tensor, labels: Tensor, classes: int, epochs: int = 4, seed: int = 0) -> PairClassifier:
    """Train a classifier to predict ``labels`` (N,) from ``pairs`` (N, 2, H, W, 3)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = PairClassifier(pairs.shape[2], pairs.shape[3], classes)
        classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # missing in torch's stubs
        optimizer = torch.optim.AdamW(classifier.parameters(), 1e-3, weight_decay=0.01)
        steps = epochs * (len(pairs) // BATCH_SIZE + 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        with tqdm(total=steps, unit="step", desc="classifier", leave=False) as bar:
            for _ in range(epochs):
                for rows in torch.randperm(len(pairs)).tensor_split(steps // epochs):
                    if len(rows) > 1:  # a batch norm needs two
                        loss = F.cross_entropy(classifier(pairs[rows]), labels[rows])
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                    schedule.step()
                    bar.update()
    return classifier.eval()


@torch.no_grad()
def classify(classifier: PairClassifier, pairs: Tensor) -> Tensor:
    """Return the class probabilities (N, classes) of pairs (N, 2, H, W, 3)."""
    return torch.cat([classifier(part).softmax(-1) for part in pairs.split(BATCH_SIZE)])


class FramePairs(NamedTuple):
    """Consecutive frames of training episodes."""

    recorded: Tensor  # (N, 2, H, W, 3) uint8
    reconstructed: Tensor  # (N, 2, H, W, 3) uint8, by the VQ-VAE
    actions: Tensor  # (N,) int64, between the two frames


def sample_real_pairs(world: WorldModel, store: EpisodeStore, count: int, seed: int) -> FramePairs:
    """Sample pairs of training episodes, ``count`` or up to three fewer."""
    segments = max(1, count // (SEGMENT_LENGTH - 1))
    frames, actions, _ = sample_segments(store, split_held_out(store)[0], segments, SEGMENT_LENGTH, seed)
    reconstructed = world.decode(world.encode(frames.flatten(0, 1))).view_as(frames)
    return FramePairs(pair_frames(frames), pair_frames(reconstructed), actions.flatten())


def pair_frames(frames: Tensor) -> Tensor:
    """Return all pairs of consecutive frames: (N, T, H, W, 3) -> (N·(T-1), 2, H, W, 3)."""
    return torch.stack([frames[:, :-1], frames[:, 1:]], 2).flatten(0, 1)


def inverse_dynamics(
    world: WorldModel, pairs: FramePairs, clips: Clips, dreams: Tensor, horizon: int = 10, seed: int = 0
) -> dict:
    """Measure whether an inverse dynamics model trained on real frames recovers the actions of dreamed frames.

    It is trained on ``pairs``, half as recorded and half reconstructed, and tested on the first ``horizon`` steps of
    the clips and of the dreams (N, S, T, h, w) that took the same actions.

    Returns:
        Its accuracy, as intervals over episodes, on ``real`` pairs, on the same pairs reconstructed by the ``vqvae``,
        and on ``dreamed`` pairs; ``majority``, the accuracy of always predicting the most frequent action; ``ratio``
        of dreamed to real accuracy, and ``skill``, the same ratio after subtracting the majority accuracy from both.
        ``confusion`` has matrices (true, predicted) of row-normalized frequencies for real and dreamed pairs.
    """
    names = world.action_names
    mixed = torch.cat([pairs.recorded[::2], pairs.reconstructed[1::2]])
    classifier = train_classifier(mixed, torch.cat([pairs.actions[::2], pairs.actions[1::2]]), len(names), seed=seed)
    horizon = min(horizon, dreams.shape[2])
    actions, episodes = clips.future_actions[:, :horizon].flatten(), clips.episodes.repeat_interleave(horizon)
    real = clips.frames[:, NUM_CONTEXT_FRAMES - 1 : NUM_CONTEXT_FRAMES + horizon]
    reconstructed = world.decode(world.encode(real.flatten(0, 1))).view_as(real)
    dreamed = world.decode(dreams[:, 0, :horizon].flatten(0, 1)).view_as(clips.future_frames[:, :horizon])
    videos = {"real": real, "vqvae": reconstructed, "dreamed": torch.cat([reconstructed[:, :1], dreamed], 1)}
    predicted = {name: classify(classifier, pair_frames(frames)).argmax(-1) for name, frames in videos.items()}
    result: dict = {
        name: bootstrap_interval((answer == actions).float(), episodes) for name, answer in predicted.items()
    }
    majority = float(torch.bincount(actions).max() / len(actions))
    real_mean, dreamed_mean = result["real"]["mean"], result["dreamed"]["mean"]
    return result | {
        "majority": majority,
        "ratio": dreamed_mean / max(real_mean, 1e-9),
        "skill": (dreamed_mean - majority) / max(real_mean - majority, 1e-9),
        "confusion": {name: confusion_matrix(actions, predicted[name], len(names)) for name in ("real", "dreamed")},
    }


def confusion_matrix(true: Tensor, predicted: Tensor, classes: int) -> list[list[float]]:
    """Return how often each true class (rows) was predicted as each class (columns); absent classes have rows of 0."""
    counts = torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, classes).float()
    return (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist()


def train_dream_detector(real: Tensor, dreamed: Tensor, seed: int = 0) -> PairClassifier:
    """Train a classifier of dreamed pairs (class 1) against real pairs reconstructed by the VQ-VAE (class 0)."""
    labels = torch.cat([torch.zeros(len(real)), torch.ones(len(dreamed))]).long()
    return train_classifier(torch.cat([real, dreamed]), labels, 2, seed=seed)


def log_odds(detector: PairClassifier, pairs: Tensor) -> Tensor:
    """Return a dream detector's log-odds (N,) that pairs (N, 2, H, W, 3) are dreamed."""
    return torch.logit(classify(detector, pairs)[:, 1], 1e-6)
