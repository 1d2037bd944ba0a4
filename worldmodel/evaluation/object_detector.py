"""A small net that learns from recorded frames where objects are, and looks for them in others."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from worldmodel.episodes.episode import Objects
from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.evaluation.objects_in_view import SMALLEST, inside, of_kind, size
from worldmodel.world_model import WorldModel

LEARNT = 4096  # frames that the detector learns from, half of them with objects; a fifth chooses its thresholds
EPOCHS = 4
POSITIVE = 10.0  # weight of a cell with an object
BATCH = 32
STRIDE = 4  # pixels of a side of a cell of the detector's grid


class Detector(nn.Module):
    """Frames (N, H, W, 3) uint8 -> logits (N, kinds, H / 4, W / 4) that an object has its middle in a cell."""

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


class Watcher(NamedTuple):
    """A detector, and the logit above which it is believed, for each kind."""

    detector: Detector
    thresholds: Tensor  # (kinds,)

    @torch.no_grad()
    def look(self, frames: Tensor) -> list[list[np.ndarray]]:
        """What :func:`detect` gives for frames (N, H, W, 3)."""
        return detect(torch.cat([self.detector(part) for part in frames.split(BATCH)]), self.thresholds)


def detect(logits: Tensor, thresholds: Tensor) -> list[list[np.ndarray]]:
    """Where a detector's logits (N, kinds, h, w) have their peaks: for each frame and kind, points (n, 2) in [0, 1]."""
    sides = torch.tensor(logits.shape[:1:-1])  # (w, h)
    peaks = (logits == F.max_pool2d(logits, 3, 1, 1)) & (logits > thresholds[:, None, None])
    return [[((kind.nonzero().flip(1) + 0.5) / sides).numpy() for kind in frame] for frame in peaks]


def teach(
    world: WorldModel,
    store: EpisodeStore,
    known: dict[Entry, Objects],
    names: list[str],
    random: np.random.Generator,
    seed: int,
) -> Watcher:
    """Teach a detector on frames of training episodes, half of them as recorded and half as the VQ-VAE shows them."""
    places = _places(known, names, random)
    frames = torch.from_numpy(np.concatenate([store.observations(entry.number, at, 1) for entry, at in places]))
    shown = torch.cat([world.decode(world.encode(part)) for part in frames.split(BATCH)])
    height, width = (-(-side // STRIDE) for side in frames.shape[1:3])
    targets = torch.from_numpy(np.stack([_target(known[entry], at, names, height, width) for entry, at in places]))
    chosen = len(frames) // 5  # by these its thresholds are chosen
    frames[chosen::2] = shown[chosen::2]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = Detector(len(names)).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=0.01)
        steps = EPOCHS * -(-(len(frames) - chosen) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        with tqdm(total=steps, unit="step", desc="detector", leave=False) as bar:
            for _ in range(EPOCHS):
                for part in (torch.randperm(len(frames) - chosen) + chosen).split(BATCH):
                    logits, target = detector(frames[part]), targets[part]
                    loss = F.binary_cross_entropy_with_logits(logits, target.clamp_min(0), reduction="none")
                    weight = torch.where(target > 0, POSITIVE, 1.0) * (target >= 0)
                    optimizer.zero_grad()
                    ((loss * weight).sum() / weight.sum()).backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
    detector.eval()
    with torch.no_grad():
        logits = torch.cat([detector(part) for part in shown[:chosen].split(BATCH)])
    return Watcher(detector, _thresholds(logits, [known[entry] for entry, _ in places[:chosen]], places, names))


def _thresholds(logits: Tensor, objects: list[Objects], places: list[tuple[Entry, int]], names: list[str]) -> Tensor:
    """For each kind the threshold with the best harmonic mean of precision and recall."""
    candidates = torch.linspace(-3, 4, 15)
    scores = torch.zeros(len(candidates), len(names))
    for row, threshold in enumerate(candidates):
        sight = detect(logits, threshold.expand(len(names)))
        for kind, name in enumerate(names):
            found = missed = wrong = 0
            for points, here, (_, at) in zip(sight, objects, places, strict=False):
                hits = inside(points[kind], of_kind(here, at, name, SMALLEST)[0]).any(0)
                found, missed = found + hits.sum(), missed + (~hits).sum()
                wrong += (~inside(points[kind], of_kind(here, at, name)[0]).any(1)).sum()
            scores[row, kind] = 2 * found / max(1, 2 * found + missed + wrong)
    return candidates[scores.argmax(0)]


def _places(known: dict[Entry, Objects], names: list[str], random: np.random.Generator) -> list[tuple[Entry, int]]:
    """LEARNT observations (episode, number), about half of them with objects in view, in a random order."""
    filled = [(entry, int(at)) for entry, objects in known.items() for at in np.unique(objects.frames)]
    every = [(entry, at) for entry in known for at in range(entry.observations)]
    chosen = [part[i] for part in (filled, every) for i in random.choice(len(part), min(len(part), LEARNT // 2), False)]
    return [chosen[i] for i in random.permutation(len(chosen))]


def _target(objects: Objects, at: int, names: list[str], height: int, width: int) -> np.ndarray:
    """(kinds, height, width) float32: 1 where an object has its middle, -1 around it and in small ones, 0 elsewhere."""
    target = np.zeros((len(names), height, width), np.float32)
    for kind, name in enumerate(names):
        boxes = of_kind(objects, at, name)[0]
        for box in boxes:
            x, y = int((box[0] + box[2]) / 2 * width), int((box[1] + box[3]) / 2 * height)
            around = target[kind, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            around[around == 0] = -1
            if size(box) >= SMALLEST:
                target[kind, y, x] = 1
    return target
