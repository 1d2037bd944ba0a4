"""Object permanence: is what was in view when a dream began still there later, and was anything invented?

A small net learns from real frames of training episodes where objects are; it then looks at real frames and at dreamed
ones. Both are shown by the VQ-VAE, so that what differs is the dream.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from worldmodel.data.episode import Objects
from worldmodel.data.store import Entry, EpisodeStore
from worldmodel.data.windows import StepWindows, split
from worldmodel.evaluation.clips import CONTEXT, Clips, dream
from worldmodel.scores import interval
from worldmodel.world import WorldModel

HORIZONS = (1, 5, 10, 20)
SMALLEST = 0.04  # of a side of the picture: an object that is smaller need not be found, nor is it wrong to find it
NEAR = 0.08  # by how much of a side a dreamed object may lie outside the box of the true one
RARE = 500  # a kind that is seen less often in training episodes is left out
LEARNT = 4096  # frames that the detector learns from, half of them with objects; a fifth chooses its thresholds
EPOCHS = 4
POSITIVE = 10.0  # weight of a cell with an object
BATCH = 32
STRIDE = 4  # pixels of a side of a cell of the detector's grid
COLOURS = {  # of what has one colour in DeepMind Lab: the share of red, green and blue, from and to
    "apple": ((0.60, 1.00), (0.00, 0.18), (0.00, 0.22)),
    "lemon": ((0.36, 0.47), (0.41, 0.52), (0.00, 0.19)),
}
DARKEST, FILLED, JUMP = 100, 0.5, 0.15  # a colour's sum, the share of its box that it fills, how far it moves a frame


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


def in_view(store: EpisodeStore, entry: Entry) -> Objects | None:
    """What the world said was in view, or what has the colour of an object of DeepMind Lab; else None."""
    objects = store.objects(entry.number)
    if objects is None and store.schema.environment == "envs:Lab-v0":
        return by_colour(store.observations(entry.number, 0, entry.observations))
    return objects


def by_colour(frames: np.ndarray) -> Objects:
    """Patches of the :data:`COLOURS` in frames (T, H, W, 3); one near that of the frame before is the same object."""
    seen, before, fresh = [], [], 0
    height, width = frames.shape[1:3]
    for frame in frames:
        total = frame.sum(-1, dtype=np.int64)
        shares = frame / np.maximum(total, 1)[..., None]
        here = []
        for name, limits in COLOURS.items():
            low, high = np.array(limits).T
            patches, _ = ndimage.label(
                ((shares >= low) & (shares <= high)).all(-1) & (total > DARKEST), np.ones((3, 3))
            )
            for number, (rows, columns) in enumerate(ndimage.find_objects(patches), 1):
                box = columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
                if (patches[rows, columns] == number).mean() >= FILLED and _size(np.array(box)) >= SMALLEST:
                    near = [row for row in before if row[0] == name and _apart(row[2], box) < JUMP]
                    nearest = min(near, key=lambda row, box=box: _apart(row[2], box), default=None)
                    if nearest:
                        before.remove(nearest)
                    fresh += nearest is None
                    here.append((name, nearest[1] if nearest else fresh, box))
        seen.append(here)
        before = list(here)
    return Objects.gather(seen)


def permanence(world: WorldModel, store: EpisodeStore, count: int, temperature: float = 1.0, seed: int = 0) -> dict:
    """Follow objects from the last real frame of a clip into the dream.

    Args:
        count: clips of held-out episodes, all with an object in their last real frame.

    Returns:
        By kind and horizon: ``in view``, how many of the objects in the last real frame are in view then in truth;
        ``found in truth`` and ``found in dream``, the shares of these that the detector sees in the true frame and in
        the dreamed one; ``invented in truth`` and ``invented in dream``, what it sees in a frame where nothing is (in
        truth these are its own mistakes). All but the first are intervals over episodes. Empty if nobody knows what is
        in view, or too few objects are.
    """
    random, (learnt, held_out) = np.random.default_rng(seed), split(store)
    known = [{entry: in_view(store, entry) for entry in part} for part in (learnt, held_out)]
    names = _often(known[0].values())
    begun = _beginnings(known[1], names, count, random)
    if not begun:
        return {}
    detector = _taught(world, store, known[0], names, random, seed)
    clips = _clips(store, begun)
    dreams = dream(world, clips, clips.to_take, 1, temperature, seed)[:, 0]
    rows: dict = {name: {horizon: [] for horizon in HORIZONS} for name in names}
    for number, (entry, last) in enumerate(tqdm(begun, unit="clip", desc="objects", leave=False)):
        sights = [detector.look(world.decode(codes)) for codes in (world.encode(clips.truth[number]), dreams[number])]
        for kind, name in enumerate(names):
            at_first = _of(known[1][entry], last, name, SMALLEST)[1]
            for horizon in HORIZONS:
                boxes, identities = _of(known[1][entry], last + horizon, name, SMALLEST)
                boxes = boxes[np.isin(identities, at_first)]
                everything = _of(known[1][entry], last + horizon, name)[0]
                points = [sight[horizon - 1][kind] for sight in sights]
                found = [_inside(here, boxes).any(0).sum() for here in points]
                invented = [(~_inside(here, everything).any(1)).sum() for here in points]
                rows[name][horizon].append((len(boxes), *found, *invented))
    return {
        name: {at: _summary(torch.tensor(part), clips.episodes) for at, part in rows[name].items()} for name in names
    }


def _summary(counts: Tensor, episodes: Tensor) -> dict:
    """Of (N, 5) counts in clips: objects, found in truth and dream, invented in truth and dream."""
    followed = counts[:, 0] > 0
    which = torch.arange(len(counts)).repeat_interleave(counts[:, 0])  # the clip of each object
    result: dict = {"in view": int(counts[:, 0].sum())}
    for column, name in enumerate(("found in truth", "found in dream"), 1):
        if followed.any():
            hits = torch.cat([(torch.arange(int(n)) < int(k)).float() for n, k in counts[:, [0, column]]])
            result[name] = interval(hits, episodes[which])
    for column, name in enumerate(("invented in truth", "invented in dream"), 3):
        result[name] = interval(counts[:, column].float(), episodes)
    return result


def detect(logits: Tensor, thresholds: Tensor) -> list[list[np.ndarray]]:
    """Where a detector's logits (N, kinds, h, w) have their peaks: for each frame and kind, points (n, 2) in [0, 1]."""
    size = torch.tensor(logits.shape[:1:-1])  # (w, h)
    peaks = (logits == F.max_pool2d(logits, 3, 1, 1)) & (logits > thresholds[:, None, None])
    return [[((kind.nonzero().flip(1) + 0.5) / size).numpy() for kind in frame] for frame in peaks]


class Watcher(NamedTuple):
    """A detector, and the logit above which it is believed, for each kind."""

    detector: Detector
    thresholds: Tensor  # (kinds,)

    @torch.no_grad()
    def look(self, frames: Tensor) -> list[list[np.ndarray]]:
        """What :func:`detect` gives for frames (N, H, W, 3)."""
        return detect(torch.cat([self.detector(part) for part in frames.split(BATCH)]), self.thresholds)


def _taught(
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
                hits = _inside(points[kind], _of(here, at, name, SMALLEST)[0]).any(0)
                found, missed = found + hits.sum(), missed + (~hits).sum()
                wrong += (~_inside(points[kind], _of(here, at, name)[0]).any(1)).sum()
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
        boxes = _of(objects, at, name)[0]
        for box in boxes:
            x, y = int((box[0] + box[2]) / 2 * width), int((box[1] + box[3]) / 2 * height)
            around = target[kind, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            around[around == 0] = -1
            if _size(box) >= SMALLEST:
                target[kind, y, x] = 1
    return target


def _often(known: Iterable[Objects | None]) -> list[str]:
    """The kinds of objects that are not rare."""
    seen: Counter = Counter()
    for objects in known:
        if objects is not None:
            kinds = objects.kinds[_size(objects.boxes) >= SMALLEST]
            seen.update({name: int((kinds == kind).sum()) for kind, name in enumerate(objects.names)})
    return sorted(name for name, count in seen.items() if count >= RARE)


def _beginnings(
    known: dict[Entry, Objects | None], names: list[str], count: int, random: np.random.Generator
) -> list[tuple[Entry, int]]:
    """Up to ``count`` observations with an object in view, with enough others before and after them."""
    places = [
        (entry, at)
        for entry, objects in known.items()
        if objects is not None
        for at in range(CONTEXT - 1, entry.observations - max(HORIZONS))
        if any(len(_of(objects, at, name, SMALLEST)[0]) for name in names)
    ]
    return [places[i] for i in sorted(random.choice(len(places), min(count, len(places)), False))] if places else []


def _clips(store: EpisodeStore, begun: list[tuple[Entry, int]]) -> Clips:
    """The clips whose last real frames these are."""
    length = CONTEXT + max(HORIZONS)
    windows = StepWindows(store, [entry for entry, _ in begun], 1, length, 0)
    frames, actions = zip(*(windows.read(entry, last - CONTEXT + 1)[:2] for entry, last in begun), strict=True)
    numbers = torch.tensor([entry.number for entry, _ in begun])
    return Clips(torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(actions)), numbers)


def _of(objects: Objects, at: int, name: str, smallest: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) and identities (n,) of the objects of one kind in one observation."""
    if name not in objects.names:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    rows = (objects.frames == at) & (objects.kinds == objects.names.index(name)) & (_size(objects.boxes) >= smallest)
    return objects.boxes[rows], objects.identities[rows]


def _size(boxes: np.ndarray) -> np.ndarray:
    """The shorter side of boxes (…, 4)."""
    return np.minimum(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def _apart(box: np.ndarray, other: np.ndarray) -> float:
    """The distance of the middles of two boxes (4,)."""
    middles = [(np.array(part[:2]) + part[2:]) / 2 for part in (box, other)]
    return float(np.linalg.norm(middles[0] - middles[1]))


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which points (n, 2) lie in which boxes (m, 4), or near them: (n, m) bool."""
    x, y = points[:, :1], points[:, 1:]
    left, top, right, bottom = boxes.T
    return (x > left - NEAR) & (x < right + NEAR) & (y > top - NEAR) & (y < bottom + NEAR)
