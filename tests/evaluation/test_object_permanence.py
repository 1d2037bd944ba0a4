"""Objects in view: recorded, found again in frames, and followed into dreams whose faults are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import PRIOR_SIZES, VQVAE_SIZES, train_config
from tests.evaluation.test_evaluate import Film
from worldmodel.episodes.collect import play_episode
from worldmodel.episodes.episode import Episode, Objects
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.evaluate import evaluate
from worldmodel.evaluation import object_detector
from worldmodel.evaluation import object_permanence as measure
from worldmodel.evaluation.object_detector import find_peaks
from worldmodel.evaluation.object_permanence import object_permanence
from worldmodel.evaluation.objects_in_view import detect_by_color, find_objects
from worldmodel.train.dynamics import dynamics
from worldmodel.train.vqvae import vqvae

SIDE, SQUARE = 24, 6


def moving_square(seed: int, steps: int = 40) -> Episode:
    """A white square on dark noise, which actions 0, 1 and 2 shift left, leave and shift right, round and round."""
    random = np.random.default_rng(seed)
    frame = random.integers(0, 90, (SIDE, SIDE, 3), np.uint8)
    row, column = random.integers(0, SIDE - SQUARE, 2)
    frame[row : row + SQUARE, column : column + SQUARE] = 255
    frames, seen, actions = [], [], random.integers(0, 3, steps)
    for action in (1, *actions):
        frame = np.roll(frame if not frames else frames[-1], 4 * (action - 1), 1)
        column = (column + 4 * (action - 1)) % SIDE
        frames.append(frame)
        box = np.array([column, row, column + SQUARE, row + SQUARE]) / SIDE
        seen.append([("square", 7, box)] if column + SQUARE <= SIDE else [])
    return Episode(np.stack(frames), actions, np.zeros(steps), False, True, seed, Objects.gather(seen))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    store = EpisodeStore.create(
        tmp_path_factory.mktemp("squares") / "store",
        Schema((SIDE, SIDE, 3), "uint8", ("left", "stay", "right"), "squares"),
    )
    for seed in range(20):
        store.append(moving_square(seed))
    return store


def test_objects_come_back_from_a_store_and_an_episode_without_has_none(squares, tmp_path):
    first = moving_square(0)
    there = squares.read(0).objects
    assert there.names == ("square",)
    for name in ("frames", "kinds", "identities", "boxes"):
        np.testing.assert_array_equal(getattr(there, name), getattr(first.objects, name))
    bare = EpisodeStore.create(tmp_path / "bare", squares.schema)
    bare.append(replace(first, objects=None))
    assert bare.read(0).objects is None


def test_an_empty_view_is_not_an_unknown_one(squares, tmp_path):
    store = EpisodeStore.create(tmp_path / "empty", squares.schema)
    store.append(replace(moving_square(0), objects=Objects.gather([[] for _ in range(41)])))
    assert len(store.read(0).objects.frames) == 0


def test_objects_whose_parts_do_not_fit_cannot_be_made():
    three = np.zeros(3, np.int64)
    with pytest.raises(ValueError, match=r"boxes \(N, 4\)"):
        Objects(("a",), three, three, three, np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"kinds of objects must be in \[0, 1\), got up to 2"):
        Objects(("a",), three, three + 2, three, np.zeros((3, 4), np.float32))


def test_patches_of_a_colour_keep_their_identity_from_frame_to_frame():
    frames = np.full((4, 40, 40, 3), (70, 80, 60), np.uint8)
    for number, frame in enumerate(frames):
        frame[10:16, 4 + 3 * number : 10 + 3 * number] = (150, 10, 12)  # an apple that moves
        frame[20:24, 20:24] = (190, 200, 60)  # a lemon that stays
    frames[3, 30:34, 2:6] = (150, 10, 12)  # another apple
    found = detect_by_color(frames)
    assert found.names == ("apple", "lemon")
    of_kind = [found.identities[found.kinds == kind].tolist() for kind in (0, 1)]
    assert len(set(of_kind[0][:4])) == 1 and len(of_kind[0]) == 5 and len(set(of_kind[0])) == 2
    assert len(of_kind[1]) == 4 and len(set(of_kind[1])) == 1
    np.testing.assert_allclose(found.boxes[0], [0.1, 0.25, 0.25, 0.4])


def test_peaks_are_found_once_and_where_they_are():
    logits = torch.full((1, 2, 6, 6), -5.0)
    logits[0, 0, 2, 3], logits[0, 0, 2, 4] = 3.0, 2.0
    ((points, others),) = find_peaks(logits, torch.zeros(2))
    np.testing.assert_allclose(points, [[3.5 / 6, 2.5 / 6]])
    assert others.shape == (0, 2)


def follow(world: Film, store: EpisodeStore, monkeypatch) -> dict:
    monkeypatch.setattr(object_detector, "NUM_FRAMES", 512)
    monkeypatch.setattr(measure, "MIN_SIGHTINGS", 50)
    return object_permanence(world, store, 12)["square"]


@pytest.mark.slow
def test_a_perfect_dream_keeps_every_object_and_invents_none(squares, monkeypatch):
    rows = follow(Film(lambda actions: actions), squares, monkeypatch)
    assert list(rows) == [1, 5, 10, 20]
    for row in rows.values():
        assert row["in_view"] > 0 and row["detected_in_truth"]["mean"] > 0.8
        assert row["detected_in_dream"] == row["detected_in_truth"]
        assert row["false_positives_in_dream"] == row["false_positives_in_truth"]
        assert row["per_frame_in_dream"] == row["per_frame_in_truth"] and 0.5 < row["per_frame_in_truth"]["mean"] < 1.5


@pytest.mark.slow
def test_a_dream_that_forgets_keeps_none(squares, monkeypatch):
    world = Film(lambda actions: actions)
    rolled = world.imagine

    def imagine(state, *rest):
        return rolled(state.clamp_max(90), *rest)

    monkeypatch.setattr(world, "imagine", imagine)
    rows = follow(world, squares, monkeypatch)
    assert all(row["detected_in_dream"]["mean"] < 0.1 < row["detected_in_truth"]["mean"] for row in rows.values())
    assert all(row["per_frame_in_dream"]["mean"] < 0.5 for row in rows.values())


@pytest.mark.slow
def test_a_dream_that_doubles_objects_invents_them(squares, monkeypatch):
    world = Film(lambda actions: actions)
    rolled = world.imagine

    def imagine(state, *rest):
        return rolled(torch.maximum(state, state.roll(SIDE // 2, 1)), *rest)

    monkeypatch.setattr(world, "imagine", imagine)
    rows = follow(world, squares, monkeypatch)
    for row in rows.values():
        assert row["false_positives_in_dream"]["mean"] > 0.5 > row["false_positives_in_truth"]["mean"]
        assert row["per_frame_in_dream"]["mean"] > 1.4 * row["per_frame_in_truth"]["mean"]


def test_episodes_that_choose_thresholds_do_not_train_the_detector(squares, monkeypatch):
    sampled = []

    def sample(*arguments):
        sampled.append(sample_frames(*arguments))
        return sampled[-1]

    sample_frames = object_detector._sample_frames
    monkeypatch.setattr(object_detector, "_sample_frames", sample)
    monkeypatch.setattr(object_detector, "NUM_FRAMES", 64)
    monkeypatch.setattr(measure, "MIN_SIGHTINGS", 50)
    assert object_permanence(Film(lambda actions: actions), squares, 2)
    validation, training = ({entry.number for entry, _ in part} for part in sampled)
    assert validation and training and not validation & training
    assert [len(part) for part in sampled] == [12, 50]


def test_a_kind_that_no_validation_frame_shows_has_a_neutral_threshold(squares):
    known = {entry: find_objects(squares, entry) for entry in squares.entries[:2]}
    labeled = [(entry, at) for entry in known for at in range(8)]
    thresholds = object_detector._choose_thresholds(torch.full((16, 1, 8, 8), -9.0), known, labeled, ["unseen"])
    assert thresholds.tolist() == [0.0]


def test_nothing_is_said_of_a_single_training_episode(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "MIN_SIGHTINGS", 10)
    store = EpisodeStore.create(tmp_path / "few", squares.schema)
    for number in range(2):  # the last one is held out
        store.append(squares.read(number))
    assert object_permanence(Film(lambda actions: actions), store, 4) == {}


def test_nothing_is_said_where_nobody_knows_what_is_in_view(squares, tmp_path):
    bare = EpisodeStore.create(tmp_path / "bare", squares.schema)
    for number in range(3):
        bare.append(replace(squares.read(number), objects=None))
    assert object_permanence(Film(lambda actions: actions), bare, 4) == {}


@pytest.mark.slow
def test_evaluate_follows_objects_where_a_store_knows_them(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(object_detector, "NUM_FRAMES", 128)
    monkeypatch.setattr(measure, "MIN_SIGHTINGS", 50)
    store, tokenizer, run, out = str(squares.path), str(tmp_path / "vqvae"), str(tmp_path / "world"), tmp_path / "page"
    vqvae(tokenizer, store, model=VQVAE_SIZES, train=train_config(4), batch_size=8)
    dynamics(store, tokenizer, run, PRIOR_SIZES, train_config(2), batch_size=2, seq_length=6)
    evaluate(
        store,
        run,
        clips=2,
        samples=1,
        objects=3,
        only="objects",
        out=str(out),
    )
    rows = json.loads((out / "scores.json").read_text())["objects"]["square"]
    assert list(rows) == ["1", "5", "10", "20"]
    assert "<td>square</td><td>20</td>" in (out / "index.html").read_text()


BALL = {"objects": [("ball", 3, (0, 0, 0.5, 0.5))]}


@pytest.mark.parametrize(
    ("first", "second", "frames"), [(BALL, {"objects": []}, [0]), (BALL, {}, [0]), ({}, BALL, [1]), ({}, {}, None)]
)
def test_a_collector_records_what_a_world_says_is_in_view(first, second, frames):
    class World:
        def reset(self, seed):
            return np.zeros((8, 8, 3), np.uint8), first

        def step(self, action):
            return np.zeros((8, 8, 3), np.uint8), 0.0, True, False, second

    seen = play_episode(World(), lambda frame: 0, 0, 10).objects
    if frames is None:
        assert seen is None
    else:
        assert (seen.names, seen.frames.tolist(), seen.identities.tolist()) == (("ball",), frames, [3])
