"""Files are written completely or not at all, and unwritable paths are reported before any work is done."""

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from agents.evaluate import evaluate as evaluate_agent
from worldmodel.benchmark import benchmark
from worldmodel.dream import dream
from worldmodel.evaluate import evaluate
from worldmodel.experiments.global_codes.evaluate import evaluate as evaluate_global_codes
from worldmodel.experiments.likelihood.evaluate import evaluate as evaluate_likelihood
from worldmodel.experiments.quantizers.compare import compare_quantizers
from worldmodel.experiments.speech.convert import convert
from worldmodel.experiments.speech.evaluate import evaluate as evaluate_speech
from worldmodel.experiments.speech.phonemes import phonemes
from worldmodel.experiments.speech.sample import sample as sample_speech
from worldmodel.experiments.speech.synthesize import synthesize
from worldmodel.files import (
    check_file,
    check_folder,
    locked,
    remove_stale_temporaries,
    unused_path,
    write_atomically,
    write_folder_atomically,
)
from worldmodel.sample import sample

NOWHERE = "a run or store that is not there, so that only a door can come first"
PROGRAMS = {
    "dream": lambda out: dream(world=NOWHERE, out=f"{out}.gif"),
    "sample": lambda out: sample(NOWHERE, out=f"{out}.png"),
    "evaluate": lambda out: evaluate(NOWHERE, out=out),
    "benchmark": lambda out: benchmark(world=NOWHERE, out=out),
    "agents.evaluate": lambda out: evaluate_agent(NOWHERE, out=out),
    "agents.evaluate --video": lambda out: evaluate_agent(NOWHERE, video=f"{out}.gif"),
    "global_codes evaluate": lambda out: evaluate_global_codes(NOWHERE, NOWHERE, out),
    "likelihood evaluate": lambda out: evaluate_likelihood(NOWHERE, out=out),
    "quantizers": lambda out: compare_quantizers(out, NOWHERE),
    "speech evaluate": lambda out: evaluate_speech(NOWHERE, NOWHERE, out),
    "speech phonemes": lambda out: phonemes(NOWHERE, NOWHERE, out),
    "speech convert": lambda out: convert(NOWHERE, "george", f"{out}.wav"),
    "speech sample": lambda out: sample_speech(NOWHERE, out),
    "speech synthesize": lambda out: synthesize(out),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_looks_at_its_output_first(program, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is not a folder, so nothing can be written to"):
        PROGRAMS[program](str(tmp_path / "file" / "out"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    (tmp_path / "file").touch()
    check_file(tmp_path / "file")
    check_file(tmp_path / "new" / "deep" / "file")
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "deep")
    with pytest.raises(ValueError, match="is a folder; give the name of a file in it"):
        check_file(tmp_path)
    with pytest.raises(ValueError, match="file is not a folder"):
        check_folder(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "looking makes nothing"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_in_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="is not writable"):
        check_file(tmp_path / "file")


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    nobody, hour = 2**22 + 1, 3600  # a number above that of any process
    kept = ["model.safetensors", f".model.{os.getpid()}", f".model.{nobody}", ".hidden", f"model.{nobody}"]
    for name in (*kept, f".index.jsonl.{nobody}", f".model.{10**20}"):
        (tmp_path / name).touch()
        if name != f".model.{nobody}":  # which was begun a moment ago, perhaps on another machine
            os.utime(tmp_path / name, (time.time() - 2 * hour,) * 2)
    remove_stale_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_no_error_but_another_fault_is(number, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError) if number == errno.EIO else contextlib.nullcontext(), locked(tmp_path / "lock"):
        pass


def test_a_lock_is_held_or_waited_for(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pass
    with locked(tmp_path / "lock", wait=False):
        pass


def test_the_folders_of_a_new_file_are_made(tmp_path):
    write_atomically(tmp_path / "new" / "folder" / "file", b"new")
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"new"


def test_a_file_is_synced_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    write_atomically(tmp_path / "file", b"new")
    assert done == ["sync", "replace"] and (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in Path(tmp_path).iterdir()] == ["file"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with write_folder_atomically(tmp_path / "a") as folder:
        (folder / "x").touch()
        assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    with pytest.raises(ValueError, match="already exists"), write_folder_atomically(tmp_path / "a"):
        raise AssertionError
    with pytest.raises(KeyboardInterrupt), write_folder_atomically(tmp_path / "b") as folder:
        (folder / "x").touch()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_killed_writers_of_folders_left_is_swept(tmp_path):
    left = tmp_path / f".world.{2**22 + 1}"
    left.mkdir()
    (left / "model.safetensors").touch()
    os.utime(left, (0, 0))
    remove_stale_temporaries(tmp_path)
    assert not left.exists()


def test_a_free_name_is_the_first_that_nobody_has(tmp_path):
    assert unused_path(tmp_path / "a.gif") == tmp_path / "a.gif"
    (tmp_path / "a.gif").touch()
    (tmp_path / "a-2.gif").mkdir()
    assert unused_path(tmp_path / "a.gif") == tmp_path / "a-3.gif"


def test_a_write_that_is_broken_off_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")

    def stop(number):
        raise SystemExit(143)

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(SystemExit):
        write_atomically(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"
