"""Object permanence: is what was in view when a dream began still there later, and was anything invented?

A detector that learnt from recorded frames of training episodes looks at true frames and at dreamed ones. Both are
shown by the VQ-VAE, so that what differs is the dream.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel.episodes.episode import Objects
from worldmodel.episodes.segments import StepWindows, split
from worldmodel.episodes.store import Entry, EpisodeStore
from worldmodel.evaluation import object_detector
from worldmodel.evaluation.clips import CONTEXT, Clips, dream
from worldmodel.evaluation.objects_in_view import SMALLEST, in_view, inside, of_kind, size
from worldmodel.metrics import interval
from worldmodel.world_model import WorldModel

HORIZONS = (1, 5, 10, 20)
RARE = 500  # a kind that is seen less often in training episodes is left out


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
    looked = [{entry: in_view(store, entry) for entry in part} for part in (learnt, held_out)]
    known = [{entry: objects for entry, objects in part.items() if objects is not None} for part in looked]
    names = _often(known[0].values())
    begun = _beginnings(known[1], names, count, random)
    if not begun:
        return {}
    watcher = object_detector.teach(world, store, known[0], names, random, seed)
    clips = _clips(store, begun)
    dreams = dream(world, clips, clips.to_take, 1, temperature, seed)[:, 0]
    rows: dict = {name: {horizon: [] for horizon in HORIZONS} for name in names}
    for number, (entry, last) in enumerate(tqdm(begun, unit="clip", desc="objects", leave=False)):
        sights = [watcher.look(world.decode(codes)) for codes in (world.encode(clips.truth[number]), dreams[number])]
        for kind, name in enumerate(names):
            at_first = of_kind(known[1][entry], last, name, SMALLEST)[1]
            for horizon in HORIZONS:
                boxes, identities = of_kind(known[1][entry], last + horizon, name, SMALLEST)
                boxes = boxes[np.isin(identities, at_first)]
                everything = of_kind(known[1][entry], last + horizon, name)[0]
                points = [sight[horizon - 1][kind] for sight in sights]
                found = [inside(here, boxes).any(0).sum() for here in points]
                invented = [(~inside(here, everything).any(1)).sum() for here in points]
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


def _often(known: Iterable[Objects]) -> list[str]:
    """The kinds of objects that are not rare."""
    seen: Counter = Counter()
    for objects in known:
        kinds = objects.kinds[size(objects.boxes) >= SMALLEST]
        seen.update({name: int((kinds == kind).sum()) for kind, name in enumerate(objects.names)})
    return sorted(name for name, count in seen.items() if count >= RARE)


def _beginnings(
    known: dict[Entry, Objects], names: list[str], count: int, random: np.random.Generator
) -> list[tuple[Entry, int]]:
    """Up to ``count`` observations with an object in view, with enough others before and after them."""
    places = [
        (entry, at)
        for entry, objects in known.items()
        for at in range(CONTEXT - 1, entry.observations - max(HORIZONS))
        if any(len(of_kind(objects, at, name, SMALLEST)[0]) for name in names)
    ]
    return [places[i] for i in sorted(random.choice(len(places), min(count, len(places)), False))] if places else []


def _clips(store: EpisodeStore, begun: list[tuple[Entry, int]]) -> Clips:
    """The clips whose last real frames these are."""
    length = CONTEXT + max(HORIZONS)
    windows = StepWindows(store, [entry for entry, _ in begun], 1, length, 0)
    frames, actions = zip(*(windows.read(entry, last - CONTEXT + 1)[:2] for entry, last in begun), strict=True)
    numbers = torch.tensor([entry.number for entry, _ in begun])
    return Clips(torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(actions)), numbers)
