"""A small object detector trained on recorded frames and their known boxes."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from worldmodel.episodes.episode import Objects
from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.evaluation.objects_in_view import MIN_SIZE, points_in_boxes, select_kind, shorter_side
from worldmodel.world_model import WorldModel

NUM_FRAMES = 4096  # labeled frames, half of them with objects
VALIDATION_FRACTION = 0.2  # of the episodes and of the labeled frames, which choose the thresholds; the others train
NUM_EPOCHS = 4
POSITIVE_WEIGHT = 10.0  # loss weight of a cell with an object
BATCH_SIZE = 32  # frames
CELL_SIZE = 4  # pixels per side of a cell of the output grid


class DetectorNet(nn.Module):
    """Frames (N, H, W, 3) uint8 -> logits (N, kinds, H / 4, W / 4) that an object has its center in a cell."""

    def __init__(self, kinds: int, width: int = 48) -> None:
        super().__init__()
        sizes = [(3, 24, 5, 2), (24, width, 3, 2), (width, width, 3, 1), (width, width, 3, 1)]
        layers = [
            nn.Sequential(nn.Conv2d(a, b, size, stride, size // 2), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, size, stride in sizes
        ]
        self.net = nn.Sequential(*layers, nn.Conv2d(width, kinds, 1))

    def forward(self, frames: Tensor) -> Tensor:
        return self.net((frames.float() / 255 - 0.5).movedim(-1, 1))


class ObjectDetector(NamedTuple):
    """A detector network with a logit threshold per kind of object."""

    network: DetectorNet
    thresholds: Tensor  # (kinds,)

    @torch.no_grad()
    def detect(self, frames: Tensor) -> list[list[np.ndarray]]:
        """Return, for each of the frames (N, H, W, 3) and each kind, the detected centers (n, 2) in [0, 1]."""
        return find_peaks(torch.cat([self.network(part) for part in frames.split(BATCH_SIZE)]), self.thresholds)


def find_peaks(logits: Tensor, thresholds: Tensor) -> list[list[np.ndarray]]:
    """Return, for each frame and kind, the local maxima of logits (N, kinds, h, w) as points (n, 2) in [0, 1]."""
    sides = torch.tensor(logits.shape[:1:-1])  # (w, h)
    peaks = (logits == F.max_pool2d(logits, 3, 1, 1)) & (logits > thresholds[:, None, None])
    return [[((kind.nonzero().flip(1) + 0.5) / sides).numpy() for kind in frame] for frame in peaks]


def train_detector(
    world: WorldModel,
    store: EpisodeStore,
    known: dict[Entry, Objects],
    names: list[str],
    random: np.random.Generator,
    seed: int,
) -> ObjectDetector:
    """Train a detector on frames of training episodes, half as recorded and half reconstructed by the VQ-VAE.

    Args:
        known: the objects of two or more training episodes. Frames of a fifth of them, reconstructed, choose the
            thresholds; frames of the others train the network.
    """
    episodes = [list(known)[i] for i in random.permutation(len(known))]
    num_episodes = max(1, int(VALIDATION_FRACTION * len(episodes)))
    validation = _sample_frames(known, episodes[:num_episodes], int(VALIDATION_FRACTION * NUM_FRAMES), random)
    training = _sample_frames(known, episodes[num_episodes:], int((1 - VALIDATION_FRACTION) * NUM_FRAMES), random)
    labeled, num_validation = validation + training, len(validation)
    frames = torch.from_numpy(np.concatenate([store.observations(entry.number, at, 1) for entry, at in labeled]))
    reconstructed = torch.cat([world.decode(world.encode(part)) for part in frames.split(BATCH_SIZE)])
    height, width = (-(-side // CELL_SIZE) for side in frames.shape[1:3])
    targets = [_build_target(known[entry], at, names, height, width) for entry, at in labeled]
    targets = torch.from_numpy(np.stack(targets))
    frames[num_validation::2] = reconstructed[num_validation::2]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DetectorNet(len(names))
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # missing in torch's stubs
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
        steps = NUM_EPOCHS * -(-(len(frames) - num_validation) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        with tqdm(total=steps, unit="step", desc="detector", leave=False) as bar:
            for _ in range(NUM_EPOCHS):
                for part in (torch.randperm(len(frames) - num_validation) + num_validation).split(BATCH_SIZE):
                    logits, target = network(frames[part]), targets[part]
                    loss = F.binary_cross_entropy_with_logits(logits, target.clamp_min(0), reduction="none")
                    weight = torch.where(target > 0, POSITIVE_WEIGHT, 1.0) * (target >= 0)
                    optimizer.zero_grad()
                    ((loss * weight).sum() / weight.sum()).backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(part) for part in reconstructed[:num_validation].split(BATCH_SIZE)])
    return ObjectDetector(network, _choose_thresholds(logits, known, validation, names))


def _choose_thresholds(
    logits: Tensor, known: dict[Entry, Objects], labeled: list[tuple[Entry, int]], names: list[str]
) -> Tensor:
    """Return the threshold with the best F1 score for each kind, 0 for kinds that are never found."""
    candidates = torch.linspace(-3, 4, 15)
    scores = torch.zeros(len(candidates), len(names))
    for kind, name in enumerate(names):
        large, every = (
            [select_kind(known[entry], at, name, min_size)[0] for entry, at in labeled] for min_size in (MIN_SIZE, 0.0)
        )
        for row, threshold in enumerate(candidates):
            found = missed = wrong = 0
            detections = find_peaks(logits[:, kind : kind + 1], threshold[None])
            for (points,), large_boxes, boxes in zip(detections, large, every, strict=True):
                hits = points_in_boxes(points, large_boxes).any(0)
                found, missed = found + hits.sum(), missed + (~hits).sum()
                wrong += (~points_in_boxes(points, boxes).any(1)).sum()
            scores[row, kind] = 2 * found / max(1, 2 * found + missed + wrong)
    return torch.where(scores.amax(0) > 0, candidates[scores.argmax(0)], 0.0)


def _sample_frames(
    known: dict[Entry, Objects], episodes: list[Entry], count: int, random: np.random.Generator
) -> list[tuple[Entry, int]]:
    """Sample up to ``count`` (episode, observation), about half with objects in view, in random order."""
    with_objects = [(entry, int(at)) for entry in episodes for at in np.unique(known[entry].frames)]
    every = [(entry, at) for entry in episodes for at in range(entry.observations)]
    chosen = []
    for part in (with_objects, every):
        chosen += [part[i] for i in random.choice(len(part), min(len(part), count // 2), False)]
    return [chosen[i] for i in random.permutation(len(chosen))]


def _build_target(objects: Objects, at: int, names: list[str], height: int, width: int) -> np.ndarray:
    """(kinds, height, width) float32: 1 at centers of objects, -1 (ignored) around them and in small ones, else 0."""
    target = np.zeros((len(names), height, width), np.float32)
    for kind, name in enumerate(names):
        boxes = select_kind(objects, at, name)[0]
        for box in boxes:
            x, y = int((box[0] + box[2]) / 2 * width), int((box[1] + box[3]) / 2 * height)
            around = target[kind, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            around[around == 0] = -1
            if shorter_side(box) >= MIN_SIZE:
                target[kind, y, x] = 1
    return target
