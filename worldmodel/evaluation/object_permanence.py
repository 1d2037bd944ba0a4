"""Object permanence: whether objects in view when a dream starts stay, and whether the dream hallucinates others.

A detector trained on frames of training episodes is run on real and on dreamed frames. Both are decoded by the VQ-VAE,
so they differ only by the dream.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel.episodes.episode import Objects
from worldmodel.episodes.segments import read_segment, split_held_out
from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.evaluation.clips import Clips, dream_clips
from worldmodel.evaluation.object_detector import train_detector
from worldmodel.evaluation.objects_in_view import MIN_SIZE, find_objects, points_in_boxes, select_kind, shorter_side
from worldmodel.models.config import NUM_CONTEXT_FRAMES
from worldmodel.stats import bootstrap_interval
from worldmodel.world_model import WorldModel

HORIZONS = (1, 5, 10, 20)
MIN_SIGHTINGS = 500  # kinds seen less often in training episodes are left out
PER_FRAME = ("false_positives_in_truth", "false_positives_in_dream", "per_frame_in_truth", "per_frame_in_dream")


def object_permanence(
    world: WorldModel, store: EpisodeStore, count: int, temperature: float = 1.0, seed: int = 0
) -> dict:
    """Follow objects from the last context frame of a clip into the dream.

    Args:
        count: maximum number of clips of held-out episodes, all with an object in their last context frame.

    Returns:
        By kind and horizon: ``in_view``, how many objects of the last context frame are still in view in the recording;
        ``detected_in_truth`` and ``detected_in_dream``, the fraction of these that are detected in the real and in the
        dreamed frame, both left out if there are none; ``false_positives_in_truth`` and ``false_positives_in_dream``,
        detections per frame where the recording has no object (in real frames, errors of the detector);
        ``per_frame_in_truth`` and ``per_frame_in_dream``, all detections per frame, which agree if a dream has as many
        objects as the real environment, wherever they are. All but the first are intervals over episodes. Empty if the
        objects in view are unknown, too rare, or known in a single training episode.
    """
    random, parts = np.random.default_rng(seed), split_held_out(store)
    found = [{entry: find_objects(store, entry) for entry in part} for part in parts]
    train, held_out = ({entry: objects for entry, objects in part.items() if objects is not None} for part in found)
    names = _common_kinds(train.values()) if len(train) > 1 else []
    starts = _sample_starts(held_out, names, count, random)
    if not starts:
        return {}
    detector = train_detector(world, store, train, names, random, seed)
    clips = _read_clips(store, starts)
    dreams = dream_clips(world, clips, clips.future_actions, 1, temperature, seed)[:, 0]
    rows: dict = {name: {horizon: [] for horizon in HORIZONS} for name in names}
    for number, (entry, last) in enumerate(tqdm(starts, unit="clip", desc="objects", leave=False)):
        truth = world.encode(clips.future_frames[number])
        detections = [detector.detect(world.decode(codes)) for codes in (truth, dreams[number])]
        for kind, name in enumerate(names):
            initial = select_kind(held_out[entry], last, name, MIN_SIZE)[1]
            for horizon in HORIZONS:
                boxes, identities = select_kind(held_out[entry], last + horizon, name, MIN_SIZE)
                boxes = boxes[np.isin(identities, initial)]
                every_box = select_kind(held_out[entry], last + horizon, name)[0]
                points = [frames[horizon - 1][kind] for frames in detections]
                hits = [points_in_boxes(part, boxes).any(0).sum() for part in points]
                false_positives = [(~points_in_boxes(part, every_box).any(1)).sum() for part in points]
                rows[name][horizon].append((len(boxes), *hits, *false_positives, *map(len, points)))
    return {
        name: {at: _summarize(torch.tensor(part), clips.episodes) for at, part in rows[name].items()} for name in names
    }


def _summarize(counts: Tensor, episodes: Tensor) -> dict:
    """Summarize counts (N, 7) by clip: objects, then in truth and dream detected ones, false ones, all detections."""
    clip_of_object = torch.arange(len(counts)).repeat_interleave(counts[:, 0])
    result: dict = {"in_view": int(counts[:, 0].sum())}
    for column, name in enumerate(("detected_in_truth", "detected_in_dream"), 1):
        if result["in_view"]:
            hits = torch.cat([(torch.arange(int(n)) < int(k)).float() for n, k in counts[:, [0, column]]])
            result[name] = bootstrap_interval(hits, episodes[clip_of_object])
    for column, name in enumerate(PER_FRAME, 3):
        result[name] = bootstrap_interval(counts[:, column].float(), episodes)
    return result


def _common_kinds(known: Iterable[Objects]) -> list[str]:
    """Return the kinds of objects that are not rare."""
    seen: Counter = Counter()
    for objects in known:
        kinds = objects.kinds[shorter_side(objects.boxes) >= MIN_SIZE]
        seen.update({name: int((kinds == kind).sum()) for kind, name in enumerate(objects.names)})
    return sorted(name for name, count in seen.items() if count >= MIN_SIGHTINGS)


def _sample_starts(
    known: dict[Entry, Objects], names: list[str], count: int, random: np.random.Generator
) -> list[tuple[Entry, int]]:
    """Sample up to ``count`` observations that have an object in view and enough frames before and after them."""
    candidates = []
    for entry, objects in known.items():
        kinds = [kind for kind, name in enumerate(objects.names) if name in names]
        shown = np.isin(objects.kinds, kinds) & (shorter_side(objects.boxes) >= MIN_SIZE)
        possible = range(NUM_CONTEXT_FRAMES - 1, entry.observations - max(HORIZONS))
        candidates += [(entry, at) for at in np.unique(objects.frames[shown]).tolist() if at in possible]
    if not candidates:
        return []
    return [candidates[i] for i in sorted(random.choice(len(candidates), min(count, len(candidates)), False))]


def _read_clips(store: EpisodeStore, starts: list[tuple[Entry, int]]) -> Clips:
    """Read the clips whose last context frames these are."""
    length = NUM_CONTEXT_FRAMES + max(HORIZONS)
    segments = [read_segment(store, entry, last - NUM_CONTEXT_FRAMES + 1, length) for entry, last in starts]
    frames, actions = (torch.from_numpy(np.stack([segment[part] for segment in segments])) for part in (0, 1))
    return Clips(frames, actions, torch.tensor([entry.number for entry, _ in starts]))
