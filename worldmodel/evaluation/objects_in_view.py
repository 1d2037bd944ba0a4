"""Objects in view in recorded frames: reported by the environment, or found by their color in DeepMind Lab."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from scipy import ndimage

from worldmodel.episodes.episode import Objects
from worldmodel.episodes.store import Entry, EpisodeStore

MIN_SIZE = 0.04  # of the image's side; a smaller object need not be detected, and is unknown in DeepMind Lab
BOX_MARGIN = 0.08  # of the image's side, by which a detection may lie outside its box
COLOR_RANGES = {  # of objects in DeepMind Lab: minimum and maximum fraction of red, green and blue
    "apple": ((0.60, 0.94), (0.00, 0.18), (0.00, 0.22)),
    "lemon": ((0.36, 0.47), (0.41, 0.52), (0.00, 0.19)),
}
MIN_BRIGHTNESS = 60  # sum of red, green and blue of an object's pixels
MIN_FILL_FRACTION = 0.5  # of its box that an object's pixels fill
MAX_JUMP = 0.15  # of the image's side that an object's center moves between frames


def find_objects(store: EpisodeStore, entry: Entry) -> Objects | None:
    """Return the objects that the environment reported or that have a known color in DeepMind Lab, else None."""
    objects = store.objects(entry.number)
    if objects is None and store.schema.environment == "envs:Lab-v0":
        return detect_by_color(store.observations(entry.number, 0, entry.observations))
    return objects


def detect_by_color(frames: np.ndarray) -> Objects:
    """Find patches of the COLOR_RANGES in frames (T, H, W, 3) and track them to the nearest patch of the last frame."""
    seen, previous, num_objects = [], [], 0
    for frame in frames:
        current = []
        for name, box in _color_patches(frame):
            near = [row for row in previous if row[0] == name and _center_distance(row[2], box) < MAX_JUMP]
            if near:
                nearest = min(near, key=lambda row, box=box: _center_distance(row[2], box))
                previous.remove(nearest)
                identity = nearest[1]
            else:
                identity = num_objects = num_objects + 1
            current.append((name, identity, box))
        seen.append(current)
        previous = list(current)
    return Objects.gather(seen)


def _color_patches(frame: np.ndarray) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the name and the box of each patch of a known color in a frame (H, W, 3)."""
    (height, width), total = frame.shape[:2], frame.sum(-1, dtype=np.int64)
    fractions = frame / np.maximum(total, 1)[..., None]
    for name, limits in COLOR_RANGES.items():
        low, high = np.array(limits).T
        mask = ((fractions >= low) & (fractions <= high)).all(-1) & (total > MIN_BRIGHTNESS)
        patches, _ = cast(tuple[np.ndarray, int], ndimage.label(mask, np.ones((3, 3))))
        for number, (rows, columns) in enumerate(ndimage.find_objects(patches), 1):
            box = columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
            filled = (patches[rows, columns] == number).mean()
            if filled >= MIN_FILL_FRACTION and shorter_side(np.array(box)) >= MIN_SIZE:
                yield name, box


def select_kind(objects: Objects, at: int, name: str, min_size: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (n, 4) and identities (n,) of the objects of one kind in observation ``at``."""
    if name not in objects.names:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    rows = (objects.frames == at) & (objects.kinds == objects.names.index(name))
    rows &= shorter_side(objects.boxes) >= min_size
    return objects.boxes[rows], objects.identities[rows]


def shorter_side(boxes: np.ndarray) -> np.ndarray:
    """Return the shorter side of boxes (…, 4)."""
    return np.minimum(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def _center_distance(box: Sequence[float], other: Sequence[float]) -> float:
    centers = [(np.array(part[:2]) + part[2:]) / 2 for part in (box, other)]
    return float(np.linalg.norm(centers[0] - centers[1]))


def points_in_boxes(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return which points (n, 2) lie in which boxes (m, 4), enlarged by BOX_MARGIN: (n, m) bool."""
    x, y = points[:, :1], points[:, 1:]
    left, top, right, bottom = boxes.T
    return (x > left - BOX_MARGIN) & (x < right + BOX_MARGIN) & (y > top - BOX_MARGIN) & (y < bottom + BOX_MARGIN)
