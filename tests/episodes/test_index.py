"""The index of a store: what counts, what is repaired, and what several writers leave of it."""

import fcntl
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.episodes.made import FRAMES, episode, same
from worldmodel.episodes.store import EpisodeStore

WRITER = """
import sys
import numpy as np
from worldmodel.episodes.episode import Episode
from worldmodel.episodes.store import EpisodeStore, Schema
print("ready", flush=True)
store = EpisodeStore.create(sys.argv[1], Schema((84, 84, 3), "uint8", ("left", "right"), "nowhere"))
while True:
    noise = np.random.default_rng(len(store)).integers(0, 256, (6, 84, 84, 3), np.uint8)
    store.append(Episode(noise, np.ones(5, int), np.zeros(5), True, False, len(store)))
"""


def test_a_torn_last_line_of_the_index_is_ignored_and_then_repaired(filled):
    index = filled.path / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(whole + whole.splitlines()[-1][:40])
    opened = EpisodeStore(filled.path)
    assert len(opened) == 6
    opened.append(episode(17, seed=6))
    lines = index.read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(7))
    assert same(EpisodeStore(filled.path).read(6), episode(17, seed=6))


def test_a_damaged_line_inside_the_index_is_named(filled):
    index = filled.path / "index.jsonl"
    index.write_bytes(index.read_bytes().replace(b'"number": 2', b'"numb', 1))
    with pytest.raises(ValueError, match=r"index.jsonl is damaged in line 3"):
        EpisodeStore(filled.path)


def test_what_a_killed_writer_left_does_not_count(filled):
    filled.write(6, episode(17, seed=6))
    (filled.path / "episodes" / ".000007.safetensors.123").write_bytes(b"half")
    opened = EpisodeStore(filled.path)
    assert len(opened) == len(list(opened)) == len(list(opened.verify())) == 6
    assert opened.append(episode(17, seed=6)).number == 6  # the same episode again, as a killed import would write it
    assert len(EpisodeStore(filled.path)) == 7


def test_a_file_that_the_index_lost_is_not_replaced_by_another_episode(filled):
    index = filled.path / "index.jsonl"
    index.write_bytes(b"".join(index.read_bytes().splitlines(True)[:5]))
    opened = EpisodeStore(filled.path)
    lost = (filled.path / "episodes" / "000005.safetensors").read_bytes()
    assert opened.append(episode(9, seed=8)).number == 6
    assert (filled.path / "episodes" / "000005.safetensors").read_bytes() == lost


def test_a_last_line_that_only_lacks_its_newline_counts(filled):
    index = filled.path / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(whole.rstrip(b"\n"))
    assert len(EpisodeStore(filled.path)) == 6
    assert EpisodeStore(filled.path).append(episode(9, seed=8)).number == 6
    assert index.read_bytes().startswith(whole) and len(EpisodeStore(filled.path)) == 7


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_store(tmp_path):
    path, random = tmp_path / "store", np.random.default_rng()
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(random.uniform(0, 0.2))
        writer.kill()
        writer.communicate()
        if (path / "store.json").exists():
            opened = EpisodeStore(path)
            assert [problem for _, problem in opened.verify() if problem] == []
            lines = (path / "index.jsonl").read_bytes().split(b"\n")[:-1]
            assert [json.loads(line)["number"] for line in lines] == list(range(len(opened)))
    assert len(opened) > 8
    for number, read in enumerate(opened):
        assert np.array_equal(
            read.observations, np.random.default_rng(number).integers(0, 256, (6, 84, 84, 3), np.uint8)
        )


def test_two_who_record_into_one_store_see_each_others_episodes(tmp_path):
    one = EpisodeStore.create(tmp_path, FRAMES)
    other = EpisodeStore(tmp_path)
    for number in range(6):
        recorder = (one, other)[number % 2]
        recorder.add_to_index(recorder.write(number, episode(4, seed=number)))
    with pytest.raises(ValueError, match="already holds episode 4: is another process recording there"):
        other.add_to_index(other.write(4, episode(4, seed=4)))
    assert [entry.number for entry in EpisodeStore(tmp_path).entries] == list(range(6))
    assert EpisodeStore(tmp_path).num_frames == 30
    assert all(not fault for _, fault in EpisodeStore(tmp_path).verify())


def test_two_who_append_to_one_store_take_different_numbers(tmp_path):
    one = EpisodeStore.create(tmp_path, FRAMES)
    other = EpisodeStore(tmp_path)
    assert one.append(episode(4, seed=1)).number == 0
    assert other.append(episode(5, seed=2)).number == 1
    assert one.append(episode(6, seed=3)).number == 2
    store = EpisodeStore(tmp_path)
    assert [entry.seed for entry in store.entries] == [1, 2, 3]
    assert all(not fault for _, fault in store.verify())


def test_recording_waits_for_whoever_holds_the_index(filled):
    number = max(entry.number for entry in filled.entries) + 1
    entry = filled.write(number, filled.read(filled.entries[0].number))
    with open(filled.path / "index.jsonl", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=filled.add_to_index, args=(entry,))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive() and number in EpisodeStore(filled.path)


def test_the_index_is_believed_only_where_the_files_agree(filled):
    lines = (filled.path / "index.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    for name, lie in (("steps", 10**15), ("observations", first["observations"] + 10**6), ("episode_return", 1e9)):
        told = {**first, name: lie}
        if name == "steps":
            told["observations"] = lie + 1
        if name == "observations":
            told["steps"] = lie - 1
        (filled.path / "index.jsonl").write_text("\n".join([json.dumps(told), *lines[1:]]) + "\n")
        problems = [problem for _, problem in EpisodeStore(filled.path).verify()]
        assert "index" in problems[0] and not any(problems[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "3"}, r"damaged in line 1: steps must be int, got '3'"),
        ({"terminated": 1}, "terminated must be bool, got 1"),
        ({"sha256": None}, "sha256 must be str, got None"),
        ({"steps": 0}, "no episode has number 0, 0 steps"),
        ({"number": -1}, "no episode has number -1"),
        ({"colour": 3}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_line_of_the_index_that_says_nonsense_is_named(change, message, filled):
    lines = (filled.path / "index.jsonl").read_text().splitlines()
    (filled.path / "index.jsonl").write_text(
        "\n".join([json.dumps({**json.loads(lines[0]), **change}), *lines[1:]]) + "\n"
    )
    with pytest.raises(ValueError, match=message):
        EpisodeStore(filled.path)


def test_a_store_without_its_index_says_so(filled):
    (filled.path / "index.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks its index.jsonl; restore it"):
        EpisodeStore(filled.path)
