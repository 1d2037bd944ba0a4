"""A store gives back what was put in, or says which file is damaged; killing whoever writes to it harms nothing."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors import safe_open
from safetensors.numpy import save

from tests.episodes.made import CODES, FRAMES, episode, same
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.segments import split_held_out
from worldmodel.episodes.store import CHUNK_SIZE, CorruptEpisodeError, EpisodeStore
from worldmodel.images.dataset import ImageBatches
from worldmodel.images.sources import FrameImages


@pytest.mark.parametrize("schema", [FRAMES, CODES])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("steps", [1, CHUNK_SIZE - 1, CHUNK_SIZE, 3 * CHUNK_SIZE + 1])
def test_an_episode_comes_back_as_it_was(schema, final, steps, tmp_path):
    put = episode(steps, schema, final)
    EpisodeStore.create(tmp_path, schema).append(put)
    (got,) = EpisodeStore(tmp_path)
    assert same(got, put)
    assert got.has_final_observation == final
    actions, rewards = EpisodeStore(tmp_path).steps(0)
    assert np.array_equal(actions, put.actions) and np.array_equal(rewards, put.rewards)


@pytest.mark.parametrize("schema", [FRAMES, CODES])
def test_a_window_is_a_slice_of_the_whole(schema, tmp_path):
    put, random = episode(41, schema), np.random.default_rng(0)
    opened = EpisodeStore.create(tmp_path, schema)
    opened.append(put)
    for _ in range(50):
        start = int(random.integers(42))
        length = int(random.integers(1, 43 - start))
        assert np.array_equal(opened.observations(0, start, length), put.observations[start : start + length])


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 0), (17, 2), (18, 1)])
def test_a_window_that_leaves_the_episode_is_refused(start, length, filled):
    with pytest.raises(ValueError, match=f"episode 0 has 18 observations, got {length} from {start} on"):
        filled.observations(0, start, length)


def test_the_same_episode_makes_the_same_file(tmp_path):
    entries = [EpisodeStore.create(tmp_path / str(i), FRAMES).append(episode(20)) for i in range(8)]
    assert len(set(entries)) == 1


def test_the_index_says_what_the_episodes_are(filled):
    entry = EpisodeStore(filled.path).entries[3]
    assert (entry.number, entry.steps, entry.observations, entry.seed) == (3, 17, 18, 3)
    assert (entry.terminated, entry.truncated) == (True, False)
    assert entry.episode_return == pytest.approx(episode(17, seed=3).rewards.sum())
    assert entry.bytes == (filled.path / entry.file).stat().st_size
    assert filled.num_frames == 6 * 18 and len(filled) == 6 and 5 in filled and 6 not in filled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observations": np.zeros((6, 84, 84), np.uint8)},
            r"holds uint8 observations of shape \(84, 84, 3\), got uint8",
        ),
        ({"observations": np.zeros((6, 84, 84, 3), np.float32)}, "holds uint8 observations .* got float32"),
        ({"actions": np.array([0, 1, 2, 0, 0])}, "knows actions 0 to 1, got 0 to 2"),
        ({"actions": np.array([0, 1, -1, 0, 0])}, "knows actions 0 to 1, got -1 to 1"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_leaves_no_trace(change, message, filled):
    with pytest.raises(ValueError, match=message):
        filled.append(replace(episode(5), **change))
    assert len(EpisodeStore(filled.path)) == 6
    assert len(list((filled.path / "episodes").iterdir())) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros(0, int)}, r"actions must be a non-empty \(T,\) integer array, got int64 \(0,\)"),
        ({"actions": np.zeros(5)}, "integer array, got float64"),
        ({"rewards": np.zeros(4)}, r"rewards must be a \(5,\) float array like the actions, got float64 \(4,\)"),
        ({"observations": np.zeros((7, 84, 84, 3), np.uint8)}, "5 actions go with 6 observations, .* got 7"),
    ],
)
def test_an_episode_whose_parts_do_not_fit_together_cannot_be_made(change, message):
    with pytest.raises(ValueError, match=message):
        replace(episode(5), **change)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("observation_shape", (64, 64, 3)),
        ("observation_dtype", "uint16"),
        ("action_names", ("left", "right", "jump")),
        ("environment", "elsewhere"),
        ("kwargs", {"level": 4}),
        ("provenance", {"seed": 1}),
    ],
)
def test_a_store_is_not_reopened_with_another_schema_and_the_difference_is_named(name, value, filled):
    with pytest.raises(ValueError, match=f"holds episodes with {name} .*use another --store"):
        EpisodeStore.create(filled.path, replace(FRAMES, **{name: value}))
    assert len(EpisodeStore.create(filled.path, FRAMES)) == 6


def test_arguments_are_compared_as_they_are_read(tmp_path):
    given = replace(FRAMES, kwargs={"actions": ("noop", "forward"), "at": {1: 2}})
    store = EpisodeStore.create(tmp_path / "store", given)
    assert store.schema.kwargs == {"actions": ["noop", "forward"], "at": {"1": 2}}
    assert EpisodeStore.create(tmp_path / "store", given).schema == store.schema
    with pytest.raises(ValueError, match="keeps the arguments of the environment as JSON"):
        EpisodeStore.create(tmp_path / "other", replace(FRAMES, kwargs={"folder": tmp_path}))


def test_a_folder_without_a_store_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no store.json; record one with python -m worldmodel.collect"):
        EpisodeStore(tmp_path)


def test_a_number_is_recorded_once(filled):
    entry = filled.write(5, episode(17, seed=5))
    with pytest.raises(ValueError, match="already holds episode 5"):
        filled.add_to_index(entry)
    assert len(EpisodeStore(filled.path)) == 6
    with pytest.raises(KeyError, match="none of them with number 6"):
        filled.read(6)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_head(path: Path) -> None:
    path.write_bytes(bytes(100) + path.read_bytes()[100:])


@pytest.mark.parametrize("damage", [truncated, flipped, without_head, Path.unlink])
def test_a_damaged_file_is_named_and_the_others_are_read(damage, filled):
    bad = [filled.path / "episodes" / f"{number:06d}.safetensors" for number in (1, 4)]
    for path in bad:
        damage(path)
    opened = EpisodeStore(filled.path)
    for number in (1, 4):
        with pytest.raises(CorruptEpisodeError, match=f"{number:06d}.safetensors is (missing|truncated|damaged)"):
            opened.read(number)
        with pytest.raises(CorruptEpisodeError, match=f"{number:06d}.safetensors is damaged"):
            opened.observations(number, 0, 18)
    for number in (0, 2, 3, 5):
        assert same(opened.read(number), episode(17, seed=number))
    problems = [(entry.number, problem) for entry, problem in opened.verify() if problem]
    assert [number for number, _ in problems] == [1, 4]
    assert all(path.name in problem for path, (_, problem) in zip(bad, problems, strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("store.json", "holds episodes but no store.json; restore it, or use another --store"),
        ("index.jsonl", "holds files of episodes, but its index.jsonl is empty; restore it"),
    ],
)
def test_episodes_are_not_given_another_schema_when_a_file_was_lost(name, message, filled):
    lost = filled.path / name
    lost.unlink() if name == "store.json" else lost.write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        EpisodeStore.create(filled.path, replace(FRAMES, provenance={"seed": 9}))


def test_a_recording_of_an_older_version_goes_on_even_without_a_whole_episode(filled):
    (filled.path / "index.jsonl").write_bytes(b"")
    now, faster = (replace(FRAMES, provenance={**FRAMES.provenance, "render_fps": rate}) for rate in (8.75, 9.0))
    assert "render_fps" not in EpisodeStore.create(filled.path, now).schema.provenance
    paced = EpisodeStore.create(filled.path.parent / "paced", now)
    paced.append(episode(4))
    assert EpisodeStore.create(paced.path, FRAMES).schema == paced.schema
    with pytest.raises(ValueError, match=r"holds episodes with provenance .*8.75.*got .*9"):
        EpisodeStore.create(paced.path, faster)


def test_a_store_is_not_made_within_a_run_or_a_file(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="is the folder of a run; use another --store"):
        EpisodeStore.create(tmp_path, FRAMES)
    with pytest.raises(ValueError, match=r"config.yaml is not a folder, so nothing can be written"):
        EpisodeStore.create(tmp_path / "config.yaml", FRAMES)


def test_a_batch_of_frames_is_a_function_of_seed_and_number(filled):
    def batch(number: int, seed: int = 0, rank: int = 0, workers: int = 1) -> np.ndarray:
        return ImageBatches(FrameImages([(filled, filled.entries[:4])]), 16, seed)(number, rank, workers).numpy()

    assert batch(3).shape == (16, 84, 84, 3)
    assert np.array_equal(batch(3), batch(3))
    for other in (batch(4), batch(3, seed=1)):
        assert not np.array_equal(batch(3), other)
    assert np.array_equal(batch(3), np.concatenate([batch(3, rank=rank, workers=4) for rank in range(4)]))
    with pytest.raises(ValueError, match="--batch_size must be a multiple of --workers, got 16 and 3"):
        batch(3, workers=3)


@pytest.mark.slow
def test_a_batch_holds_frames_of_its_episodes_all_as_likely(tmp_path):
    opened = EpisodeStore.create(tmp_path, CODES)
    for number, steps in enumerate((3, 30, 7)):  # each observation says which one it is
        codes = (
            np.full((steps + 1, 21, 21), 100 * number, np.uint16) + np.arange(steps + 1, dtype=np.uint16)[:, None, None]
        )
        opened.append(Episode(codes, np.zeros(steps, int), np.zeros(steps), True, False))
    batches = ImageBatches(FrameImages([(opened, opened.entries[:2])]), 100, seed=0)
    drawn = np.concatenate([batches(number).numpy()[:, 0, 0] for number in range(35)])
    places, counts = np.unique(drawn, return_counts=True)
    assert places.tolist() == [*range(4), *range(100, 131)]
    assert counts.min() > 60 and counts.max() < 150  # 100 expected


def test_the_split_stays_when_the_store_grows(tmp_path):
    opened = EpisodeStore.create(tmp_path, CODES)
    splits = []
    for seed in range(31):
        opened.append(episode(2, CODES, seed=seed))
        if seed >= 9:
            splits.append([{entry.number for entry in part} for part in split_held_out(opened)])
    for (learnt, held_out), (more_learnt, more_held_out) in pairwise(splits):
        assert learnt <= more_learnt and held_out <= more_held_out and not more_learnt & more_held_out
    assert splits[-1][1] == {9, 19, 29}


def test_a_small_store_holds_out_its_last_episode_and_one_episode_is_too_few(tmp_path):
    opened = EpisodeStore.create(tmp_path, CODES)
    opened.append(episode(2, CODES))
    with pytest.raises(ValueError, match="must hold two or more episodes, one of them to hold out; it holds 1"):
        split_held_out(opened)
    opened.append(episode(2, CODES))
    assert [[entry.number for entry in part] for part in split_held_out(opened)] == [[0], [1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation_shape": [84, "84"]}, "observation_shape must be a list of int"),
        ({"observation_shape": [0, 84]}, "no observation has the shape"),
        ({"observation_shape": [2**20, 2**20]}, "no observation has the shape"),
        ({"observation_dtype": "float32"}, "observation_dtype must be one of uint8, uint16, got 'float32'"),
        ({"action_names": "left"}, "action_names must be a list of str, got 'left'"),
        ({"kwargs": []}, r"kwargs must be dict, got \[\]"),
    ],
)
def test_a_schema_that_says_nonsense_is_named(change, message, filled):
    path = filled.path / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"store.json is damaged: .*{message}"):
        EpisodeStore(filled.path)


def test_an_episode_that_is_not_reproducible_stays_marked(tmp_path, filled):
    episode = replace(filled.read(filled.entries[0].number), reproducible=False)
    entry = filled.append(episode)
    again = EpisodeStore(filled.path)
    assert not again.read(entry.number).reproducible
    lines = (filled.path / "index.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["reproducible"] is False
    old = {name: value for name, value in json.loads(lines[0]).items() if name not in ("reproducible", "source")}
    (filled.path / "index.jsonl").write_text(json.dumps(old) + "\n")  # as a store of before has it
    assert EpisodeStore(filled.path).read(0).reproducible


def test_a_chunk_that_promises_more_than_a_chunk_holds_is_refused_unread(filled):
    entry = filled.entries[0]
    huge = zstandard.ZstdCompressor(level=19).compress(bytes(10**8))
    path = filled.path / entry.file
    with safe_open(path, "np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors |= {"chunks": np.frombuffer(huge, np.uint8), "offsets": np.array([0, len(huge)])}
    path.write_bytes(save(tensors, metadata))
    with pytest.raises(CorruptEpisodeError, match="a chunk has 100000000 bytes, expected"):
        filled.observations(entry.number, 0, 1)


@pytest.mark.parametrize("name", ["store.json", "index.jsonl"])
def test_json_that_is_nested_without_end_is_named(name, filled):
    (filled.path / name).write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        EpisodeStore(filled.path)
