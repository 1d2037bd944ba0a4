"""python -m worldmodel.episodes: what it says of a store, and what comes in and goes out of one."""

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.episodes.made import CODES, FRAMES, episode, same
from tests.episodes.test_store import flipped
from worldmodel import cli
from worldmodel.episodes import __main__ as episodes
from worldmodel.episodes.store import EpisodeStore
from worldmodel.images.dataset import open_images

PROGRAMS = {"info": episodes.info, "verify": episodes.verify, "import": episodes.import_, "export": episodes.export}


def make(path: Path, schema=FRAMES, count: int = 3, final: bool = True, seed: int = 0) -> EpisodeStore:
    made = EpisodeStore.create(path, schema)
    for number in range(seed, seed + count):
        made.append(episode(17 + number, schema, final, number))
    return made


def write_npz(folder: Path, number: int, per_step: bool = False, **more) -> Path:
    """An episode as other people write it; ``more`` replaces arrays, and leaves out those that are None."""
    put = episode(9, seed=number, final=bool(number % 2))
    ends = {"terminated": put.terminated, "truncated": put.truncated}
    if per_step:
        ends = {name: (np.arange(9) == 8) & end for name, end in ends.items()}
    arrays = {
        "frames": put.observations,
        "actions": put.actions.astype(np.int32),
        "rewards": put.rewards.astype(np.float32),
        "seed": put.seed,
        **ends,
        **more,
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"episode_{number:03d}.npz"
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_info_says_how_much_of_what_a_store_holds(tmp_path, capsys):
    made = make(tmp_path)
    episodes.info(str(tmp_path))
    out = capsys.readouterr().out
    assert "3 episodes, 57 frames, 54 steps" in out and "nowhere" in out and "84, 84, 3" in out
    raw = 57 * 84 * 84 * 3
    assert f"{sum(entry.bytes for entry in made.entries):,}" in out and f"{raw:,}" in out
    left = sum(int((made.steps(number)[0] == 0).sum()) for number in range(3))
    assert f"left {left} {left / 54:.1%}" in " ".join(out.split())


def test_verify_names_damaged_files_and_ends_with_one(tmp_path, capsys):
    make(tmp_path)
    episodes.verify(str(tmp_path))
    assert "all 3 episodes are intact" in capsys.readouterr().out
    flipped(tmp_path / "episodes" / "000001.safetensors")
    (tmp_path / "episodes" / ".000003.safetensors.77").touch()
    with pytest.raises(SystemExit, match="1"):
        cli.run(PROGRAMS, ["verify", "--store", str(tmp_path)])
    out, errors = capsys.readouterr()
    assert "000001.safetensors is damaged" in out + errors and "000002" not in out + errors
    assert "error: 1 of 3 episodes" in errors and "the other 2 can be read" in errors
    assert "1 files" in out and ".000003.safetensors.77" in out


@pytest.mark.parametrize("per_step", [True, False])
def test_npz_files_are_imported_as_they_are(per_step, tmp_path):
    for number in range(3):
        write_npz(tmp_path / "source", number, per_step)
    cli.run(PROGRAMS, ["import", "--store", str(tmp_path / "store"), "--source", str(tmp_path / "source")])
    opened = EpisodeStore(tmp_path / "store")
    assert opened.schema.action_names == ("0", "1") and opened.schema.environment == "unknown"
    for number, got in enumerate(opened):
        put = episode(9, seed=number, final=bool(number % 2))
        assert same(got, replace(put, rewards=put.rewards.astype(np.float32).astype(np.float64)))


def test_a_lab_recording_keeps_its_level_and_its_action_names(tmp_path):
    names = {"observations": episode(9).observations, "frames": None, "action_names": ["stay", "go"]}
    write_npz(tmp_path / "source", 0, level="seekavoid_arena_01", fps=60, **names)
    episodes.import_(str(tmp_path / "store"), str(tmp_path / "source"))
    schema = EpisodeStore(tmp_path / "store").schema
    assert (schema.environment, schema.action_names) == ("envs:Lab-v0", ("stay", "go"))
    assert schema.kwargs == {"level": "seekavoid_arena_01", "fps": 60}


def test_importing_again_adds_what_is_new_and_nothing_twice(tmp_path):
    source, store = tmp_path / "source", tmp_path / "store"
    for count in (2, 2, 4):
        for number in range(count):
            write_npz(source, number)
        episodes.import_(str(store), str(source))
        assert [entry.number for entry in EpisodeStore(store).entries] == list(range(count))
    write_npz(source, 0, rewards=np.ones(9))
    with pytest.raises(
        ValueError, match=r"episode_000.npz of .* has changed since it was imported .* import it into a new"
    ):
        episodes.import_(str(store), str(source))


@pytest.mark.parametrize("named", [True, False])
def test_files_are_known_by_name_and_content_and_come_in_natural_order(named, tmp_path):
    source, store = tmp_path / "source", tmp_path / "store"
    alike = {"rewards": np.zeros(9), "seed": None, "actions": np.ones(9, np.int64)}
    for number in (1, 2, 3):
        write_npz(source, number, frames=np.full((10, 8, 8, 3), number, np.uint8), **alike).rename(
            source / f"ep_{number}.npz"
        )
    episodes.import_(str(store), str(source))
    if not named:  # as stores were before sources had names
        lines = [json.loads(line) for line in (store / "index.jsonl").read_text().splitlines()]
        for line in lines:
            del line["source"]
        (store / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in (10, 0):
        write_npz(source, number, frames=np.full((10, 8, 8, 3), number, np.uint8), **alike).rename(
            source / f"ep_{number}.npz"
        )
    for _ in range(2):
        episodes.import_(str(store), str(source))
        assert [int(episode.observations[0, 0, 0, 0]) for episode in EpisodeStore(store)] == [1, 2, 3, 0, 10]


def test_equal_files_are_episodes_of_their_own(tmp_path):
    for number in (1, 3):
        write_npz(tmp_path / "source", number, seed=7).rename(tmp_path / "source" / f"ep_{number}.npz")
    shutil.copy(tmp_path / "source" / "ep_1.npz", tmp_path / "source" / "ep_2.npz")
    for _ in range(2):
        episodes.import_(str(tmp_path / "store"), str(tmp_path / "source"))
        assert len(EpisodeStore(tmp_path / "store")) == 3


def test_stores_of_different_policies_are_merged_once_and_those_of_other_actions_refused(tmp_path, capsys):
    for name, count, provenance in (
        ("a", 2, {"seed": 1, "render_fps": 20.0}),
        ("b", 3, {"policy": "agent", "render_fps": 20.0}),
    ):
        make(tmp_path / name, replace(FRAMES, provenance=provenance), count)
    for name in "aabb":
        episodes.import_(str(tmp_path / "both"), str(tmp_path / name), format="store")
    merged = EpisodeStore(tmp_path / "both")
    for number, expected in enumerate([*EpisodeStore(tmp_path / "a"), *EpisodeStore(tmp_path / "b")]):
        assert same(merged.read(number), expected)
    assert len(merged) == 5 and merged.schema.provenance["render_fps"] == 20.0
    assert [entry.source.split()[0] for entry in merged.entries] == ["a/0", "a/1", "b/0", "b/1", "b/2"]
    assert f"5 episodes, {merged.num_frames} frames; 0 of the source's 3 are new" in capsys.readouterr().out
    make(tmp_path / "elsewhere" / "a", FRAMES, 1, seed=9)
    for _ in range(2):
        episodes.import_(str(tmp_path / "both"), str(tmp_path / "elsewhere" / "a"), format="store")
        assert len(EpisodeStore(tmp_path / "both")) == 6, "a store of the same name has episodes of its own"
    make(tmp_path / "other", replace(FRAMES, action_names=("up", "down", "on")), 1)
    with pytest.raises(ValueError, match=r"both holds episodes with action_names .*, got"):
        episodes.import_(str(tmp_path / "both"), str(tmp_path / "other"), format="store")


def test_another_source_is_not_imported_into_the_same_store(tmp_path):
    for name in ("one", "two"):
        write_npz(tmp_path / name, 0)
    episodes.import_(str(tmp_path / "store"), str(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"holds episodes with provenance .*one.*two"):
        episodes.import_(str(tmp_path / "store"), str(tmp_path / "two"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rewards": None},
            r"000.npz is not an episode: it lacks rewards; expected .* found frames, actions, seed, term",
        ),
        ({"frames": None}, "it lacks observations; expected frames or observations, actions"),
        ({"rewards": np.zeros(3)}, r"000.npz is not an episode: rewards must be a \(9,\) float array"),
        (
            {"frames": np.zeros((9, 84, 84, 3), np.float32)},
            "000.npz must hold uint8 images or uint16 codes .* float32",
        ),
        ({"actions": np.array([{}])}, "000.npz is not an episode: Object arrays cannot be loaded"),
        ({"rewards": np.full(9, np.nan)}, r"rewards must be numbers from -1e\+15 to 1e\+15, got nan at step 0"),
        ({"rewards": np.array([0, 0, 1e30] + [0] * 6)}, "got 1e[+]30 at step 2"),
        ({"terminated": np.nan}, "000.npz is not an episode: terminated must be true or false, got nan"),
        ({"truncated": np.arange(9) == 3}, "truncated is true at step 3 of 9: it joins several episodes"),
        ({"terminated": np.arange(9) % 4 == 3}, "terminated is true at step 3 of 9: it joins several episodes"),
    ],
)
def test_an_npz_file_that_is_no_episode_is_named(change, message, tmp_path):
    write_npz(tmp_path / "source", 0, **change)
    with pytest.raises(ValueError, match=message):
        episodes.import_(str(tmp_path / "store"), str(tmp_path / "source"))


def test_files_that_are_damaged_of_another_level_or_not_there_are_named(tmp_path):
    source = tmp_path / "source"
    write_npz(source, 0, level="a")
    write_npz(source, 1, level="b")
    with pytest.raises(ValueError, match=r"001.npz has level b where episode_000.npz has a"):
        episodes.import_(str(tmp_path / "store"), str(source))
    (source / "episode_001.npz").write_bytes(b"PK and no more")
    with pytest.raises(ValueError, match=r"001.npz is not an episode"):
        episodes.import_(str(tmp_path / "store"), str(source))
    with pytest.raises(
        FileNotFoundError, match=r"nothing holds no .npz files; give a folder of them, or --format minari"
    ):
        episodes.import_(str(tmp_path / "store"), str(tmp_path / "nothing"))


@pytest.fixture
def minari(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


@pytest.mark.parametrize("schema", [FRAMES, CODES])
@pytest.mark.slow
def test_a_store_exported_to_minari_and_imported_again_is_equal_byte_for_byte(schema, minari, tmp_path):
    one = make(tmp_path / "one", schema)
    one.append(replace(episode(5, schema), seed=-1))
    one.append(replace(episode(6, schema), reproducible=False))
    episodes.export(str(tmp_path / "one"), "test/store-v0")
    dataset = minari.load_dataset("test/store-v0")
    assert not dataset.storage.jpeg_encoding and dataset.total_steps == 17 + 18 + 19 + 5 + 6
    assert np.array_equal(dataset[1].observations, one.read(1).observations)
    for _ in range(2):
        episodes.import_(str(tmp_path / "two"), "test/store-v0", "minari")
    two = EpisodeStore(tmp_path / "two")
    assert [entry.source.split(" ")[:2] for entry in two.entries] == [["episode", str(number)] for number in range(5)]
    assert two.schema == one.schema and [replace(entry, source="") for entry in two.entries] == one.entries
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert [entry.reproducible for entry in two.entries] == [True, True, True, False, False]


def test_episodes_without_a_last_frame_are_exported_only_with_padding(minari, tmp_path):
    one = make(tmp_path / "one", final=False)
    with pytest.raises(ValueError, match=r"3 of 3 episodes of .* have no frame after their last action.*--pad true"):
        episodes.export(str(tmp_path / "one"), "test/store-v0")
    episodes.export(str(tmp_path / "one"), "test/store-v0", pad=True)
    episodes.import_(str(tmp_path / "two"), "test/store-v0", "minari")
    two = EpisodeStore(tmp_path / "two")
    assert two.schema.provenance["padded"]
    for a, b in zip(one, two, strict=True):
        assert same(replace(b, observations=b.observations[:-1]), a)
        assert np.array_equal(b.observations[-1], a.observations[-1])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("data_format", "needed"), [("arrow", "pyarrow"), ("hdf5", "h5py")])
def test_a_minari_dataset_of_others_is_imported_or_refused(data_format, needed, minari, tmp_path):
    pytest.importorskip(needed)
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    def write(name: str, observations, space: spaces.Space, action_space: spaces.Space) -> None:
        ends = np.arange(4) == 3
        buffer = EpisodeBuffer(
            observations=observations,
            actions=np.full((4, *action_space.shape), 2),
            rewards=np.ones(4),
            terminations=ends,
            truncations=np.zeros(4, bool),
        )
        minari.create_dataset_from_buffers(
            f"test/{name}-v0",
            [buffer],
            observation_space=space,
            action_space=action_space,
            data_format=data_format,
            jpeg_encoding=False,
        )

    frames, pictures = episode(4).observations, spaces.Box(0, 255, (84, 84, 3), np.uint8)
    write("good", frames, pictures, spaces.Discrete(3, start=1))
    write("vector", np.zeros((5, 3)), spaces.Box(-1, 1, (3,), np.float64), spaces.Discrete(3))
    write("dict", {"image": frames}, spaces.Dict(image=pictures), spaces.Discrete(3))
    write("steer", frames, pictures, spaces.MultiDiscrete([3]))
    episodes.import_(str(tmp_path / "store"), "test/good-v0", "minari", env="a:b-v0")
    (got,) = EpisodeStore(tmp_path / "store")
    assert np.array_equal(got.observations, frames) and got.actions.tolist() == [1] * 4
    assert (got.terminated, got.truncated, got.seed) == (True, False, -1)
    assert EpisodeStore(tmp_path / "store").schema.environment == "a:b-v0"
    for name, message in [
        ("vector", "must hold uint8 images"),
        ("dict", "must observe one Box"),
        ("steer", "must have discrete actions"),
    ]:
        with pytest.raises(ValueError, match=f"test/{name}-v0 {message}"):
            episodes.import_(str(tmp_path / "other"), f"test/{name}-v0", "minari")
    with pytest.raises(
        FileNotFoundError, match=r"Minari dataset test/none-v0 not found; download it with minari download"
    ):
        episodes.import_(str(tmp_path / "other"), "test/none-v0", "minari")


def test_an_export_does_not_touch_what_is_there_and_leaves_no_half_dataset(minari, tmp_path):
    make(tmp_path / "store")
    episodes.export(str(tmp_path / "store"), "test/store-v0")
    with pytest.raises(ValueError, match="already exists; remove it with minari delete test/store-v0"):
        episodes.export(str(tmp_path / "store"), "test/store-v0")
    assert minari.load_dataset("test/store-v0").total_episodes == 3
    flipped(tmp_path / "store" / "episodes" / "000002.safetensors")
    with pytest.raises(ValueError, match=r"000002.safetensors is damaged"):
        episodes.export(str(tmp_path / "store"), "test/store-v1")
    assert list(minari.list_local_datasets()) == ["test/store-v0"]
    for name in ("store-v0", "t/store-v0", "test/store"):
        with pytest.raises(ValueError, match=f"must be named NAMESPACE/NAME-v0, .* got {name}"):
            episodes.export(str(tmp_path / "store"), name)


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_no_dataset_and_can_be_run_again(minari, tmp_path):
    make(tmp_path / "store", count=4)
    code = (
        "import os, sys, signal\nfrom worldmodel.episodes.formats import minari\n"
        "from worldmodel.episodes.store import EpisodeStore\n"
        "def until_the_third(entries):\n"
        "    for number, entry in enumerate(entries):\n"
        "        if number == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield entry\n"
        "minari.to_minari(EpisodeStore(sys.argv[1]), 'test/store-v0', progress=until_the_third)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert list(minari.list_local_datasets()) == []
    episodes.export(str(tmp_path / "store"), "test/store-v0")
    assert minari.load_dataset("test/store-v0").total_episodes == 4


def test_without_minari_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    make(tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'minari\[arrow\]'"):
        episodes.export(str(tmp_path), "test/store-v0")


def test_a_small_file_that_would_unpack_into_far_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("worldmodel.files.LARGE_ARCHIVE_BYTES", 10**6)
    frames = np.zeros((101, 84, 84, 3), np.uint8)
    np.savez_compressed(
        tmp_path / "one.npz",
        frames=frames,
        actions=np.zeros(100, np.int64),
        rewards=np.zeros(100),
        terminated=True,
        truncated=False,
    )
    with pytest.raises(ValueError, match=r"one.npz is not an episode: .*would unpack into 0.0 GB, 300 times its size"):
        episodes.import_(str(tmp_path / "store"), str(tmp_path))
    with pytest.raises(ValueError, match="would unpack into"):
        open_images(tmp_path / "one.npz")


def test_an_action_beyond_all_bounds_needs_names(tmp_path):
    np.savez(
        tmp_path / "one.npz",
        frames=np.zeros((3, 84, 84, 3), np.uint8),
        actions=np.array([0, 2**40]),
        rewards=np.zeros(2),
        terminated=True,
        truncated=False,
    )
    with pytest.raises(ValueError, match=r"one\.npz has action 1099511627776; without action_names"):
        episodes.import_(str(tmp_path / "store"), str(tmp_path))


STRANGE = {
    "seed": {"seed": np.inf},
    "whole": {"seed": 1.7},
    "fps": {"level": "a", "fps": np.array([1, 2])},
    "action_names": {"action_names": np.array("abc")},
    "level": {"level": np.array(["a", "b"])},
    "rewards": {"rewards": np.zeros(4, np.complex128)},
    "dates": {"rewards": np.zeros(4, "datetime64[D]")},
    "terminated": {"terminated": np.zeros(99, bool)},
    "both": {"observations": np.zeros((5, 84, 84, 3), np.uint8)},
    "negative": {"actions": np.array([0, -1, 0, 1])},
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_file_of_strange_values_is_refused_by_its_name(name, tmp_path):
    right = {"frames": np.zeros((5, 84, 84, 3), np.uint8), "actions": np.array([0, 1, 0, 1]), "rewards": np.zeros(4)}
    right |= {"terminated": True, "truncated": False}
    np.savez(tmp_path / "one.npz", **{**right, **STRANGE[name]})
    with pytest.raises(ValueError, match=r"one.npz is not an episode: "):
        episodes.import_(str(tmp_path / "store"), str(tmp_path))


@pytest.mark.parametrize("damage", ["member", "method", "encrypted", "header"])
def test_a_strange_archive_is_refused_by_its_name(damage, tmp_path):
    path = tmp_path / "one.npz"
    np.savez(path, frames=np.zeros((5, 84, 84, 3), np.uint8), actions=np.zeros(4, np.int64))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("rewards.npy", b"no array" if damage == "member" else b"\x93NUMPY\x01\x00\x04\x00((((")
        archive.writestr("terminated.npy", b"x")
        archive.writestr("truncated.npy", b"x")
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x01\x02", 0, data.rfind(b"actions.npy"))  # its entry in the central directory
    local = data.find(b"PK\x03\x04", data.find(b"frames.npy"))
    if damage == "method":
        data[place + 10], data[local + 8] = 97, 97
    if damage == "encrypted":
        data[place + 8], data[local + 6] = 1, 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"one.npz is not an episode: "):
        episodes.import_(str(tmp_path / "store"), str(tmp_path))


def test_a_refused_import_does_not_stand_in_the_way_of_the_mended_one(tmp_path):
    right = {
        "frames": np.zeros((5, 84, 84, 3), np.uint8),
        "rewards": np.zeros(4),
        "terminated": True,
        "truncated": False,
    }
    np.savez(tmp_path / "one.npz", actions=np.array([0, 1, 0, 1]), **{**right, "rewards": np.full(4, np.nan)})
    with pytest.raises(ValueError, match="rewards must be numbers"):
        episodes.import_(str(tmp_path / "store"), str(tmp_path))
    np.savez(tmp_path / "one.npz", actions=np.array([0, 1, 2, 1]), **right)
    episodes.import_(str(tmp_path / "store"), str(tmp_path))
    assert EpisodeStore(tmp_path / "store").schema.action_names == ("0", "1", "2")


@pytest.mark.parametrize("name", ["/tmp/evil/name-v0", "aa//cc-v0", "../aa/bb-v0", "aa/../bb/cc-v0"])
def test_a_dataset_is_not_written_outside_minaris_folder(name, tmp_path, minari):
    store = EpisodeStore.create(tmp_path / "store", CODES)
    store.append(episode(9, CODES))
    with pytest.raises(ValueError, match="a Minari dataset must be named"):
        episodes.export(str(store.path), name)
