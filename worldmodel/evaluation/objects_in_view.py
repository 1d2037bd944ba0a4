"""What is in view in recorded frames: what the world said, or what has the colour of an object of DeepMind Lab."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from worldmodel.episodes.episode import Objects
from worldmodel.episodes.store import Entry, EpisodeStore

SMALLEST = 0.04  # of a side of the picture: an object that is smaller need not be found, nor is it wrong to find it
NEAR = 0.08  # by how much of a side a sighting may lie outside the box of the object
COLOURS = {  # of what has one colour in DeepMind Lab: the share of red, green and blue, from and to
    "apple": ((0.60, 0.94), (0.00, 0.18), (0.00, 0.22)),
    "lemon": ((0.36, 0.47), (0.41, 0.52), (0.00, 0.19)),
}
DARKEST, FILLED, JUMP = 60, 0.5, 0.15  # a colour's sum, the share of its box that it fills, how far it moves a frame


def in_view(store: EpisodeStore, entry: Entry) -> Objects | None:
    """What the world said was in view, or what has the colour of an object of DeepMind Lab; else None."""
    objects = store.objects(entry.number)
    if objects is None and store.schema.environment == "envs:Lab-v0":
        return by_colour(store.observations(entry.number, 0, entry.observations))
    return objects


def by_colour(frames: np.ndarray) -> Objects:
    """Patches of the :data:`COLOURS` in frames (T, H, W, 3); one near that of the frame before is the same object."""
    seen, before, fresh = [], [], 0
    for frame in frames:
        here = []
        for name, box in _patches(frame):
            near = [row for row in before if row[0] == name and _apart(row[2], box) < JUMP]
            if near:
                nearest = min(near, key=lambda row, box=box: _apart(row[2], box))
                before.remove(nearest)
                identity = nearest[1]
            else:
                identity = fresh = fresh + 1
            here.append((name, identity, box))
        seen.append(here)
        before = list(here)
    return Objects.gather(seen)


def _patches(frame: np.ndarray) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The name and the box of each patch of one colour in a frame (H, W, 3)."""
    (height, width), total = frame.shape[:2], frame.sum(-1, dtype=np.int64)
    shares = frame / np.maximum(total, 1)[..., None]
    for name, limits in COLOURS.items():
        low, high = np.array(limits).T
        coloured = ((shares >= low) & (shares <= high)).all(-1) & (total > DARKEST)
        patches, _ = ndimage.label(coloured, np.ones((3, 3)))
        for number, (rows, columns) in enumerate(ndimage.find_objects(patches), 1):
            box = columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
            if (patches[rows, columns] == number).mean() >= FILLED and size(np.array(box)) >= SMALLEST:
                yield name, box


def of_kind(objects: Objects, at: int, name: str, smallest: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) and identities (n,) of the objects of one kind in one observation."""
    if name not in objects.names:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    rows = (objects.frames == at) & (objects.kinds == objects.names.index(name)) & (size(objects.boxes) >= smallest)
    return objects.boxes[rows], objects.identities[rows]


def size(boxes: np.ndarray) -> np.ndarray:
    """The shorter side of boxes (…, 4)."""
    return np.minimum(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def _apart(box: np.ndarray, other: np.ndarray) -> float:
    """The distance of the middles of two boxes (4,)."""
    middles = [(np.array(part[:2]) + part[2:]) / 2 for part in (box, other)]
    return float(np.linalg.norm(middles[0] - middles[1]))


def inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which points (n, 2) lie in which boxes (m, 4), or near them: (n, m) bool."""
    x, y = points[:, :1], points[:, 1:]
    left, top, right, bottom = boxes.T
    return (x > left - NEAR) & (x < right + NEAR) & (y > top - NEAR) & (y < bottom + NEAR)
