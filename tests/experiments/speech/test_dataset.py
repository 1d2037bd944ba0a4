"""Recordings are found in every layout, split as it says, and sampled in random segments."""

from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.experiments.speech.data import audio, phonemes
from worldmodel.experiments.speech.data.dataset import Recordings, SpeechBatches, describe, open_speech

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
RATE = 1000


def record(path: Path, seconds: float = 0.05, level: float = 0.5, rate: int = RATE) -> Path:
    """A ramp up to a level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.linspace(0, level, int(seconds * rate)), rate)
    return path


def names(recordings: Recordings) -> list[str]:
    return [path.name for path in recordings.paths]


def digits(folder: Path) -> Path:
    for digit in range(2):
        for speaker in ("theo", "george"):
            for number in range(6):
                record(folder / f"{digit}_{speaker}_{number}.wav", 0.02 + 0.01 * digit)
    return folder


@pytest.mark.parametrize("folder", [".", "recordings"])
def test_spoken_digits_hold_out_their_own_tests(tmp_path, folder):
    digits(tmp_path / folder)
    speech = open_speech(tmp_path, RATE)
    assert speech.speakers == ("george", "theo") and speech.unseen_speakers is None and speech.rate == RATE
    assert names(speech.train) == ["0_george_5.wav", "0_theo_5.wav", "1_george_5.wav", "1_theo_5.wav"]
    assert speech.train.speakers.tolist() == [0, 1, 0, 1] and speech.train.texts == ("0", "0", "1", "1")
    assert len(speech.held_out) == 20 and len(speech.train.mu_law(0)) == 20
    assert describe(speech)["held_out"] == 20 and describe(speech)["unseen_speakers"] == 0


@pytest.mark.parametrize(("folder", "ending"), [("wav48", ".wav"), ("wav48_silence_trimmed", "_mic1.flac")])
def test_vctk_has_a_folder_a_speaker_and_texts_elsewhere(tmp_path, folder, ending):
    for speaker in ("p225", "p226"):
        for number in range(12):
            record(tmp_path / folder / speaker / f"{speaker}_{number:03d}{ending}")
            record(tmp_path / folder / speaker / f"{speaker}_{number:03d}_mic2.flac")
        (tmp_path / "txt" / speaker).mkdir(parents=True)
        (tmp_path / "txt" / speaker / f"{speaker}_009.txt").write_text("Please call Stella.\n")
    (tmp_path / folder / "log.txt").touch()
    speech = open_speech(tmp_path, RATE)
    assert speech.speakers == ("p225", "p226") and len(speech.train) == 22
    assert names(speech.held_out) == [f"{speaker}_009{ending}" for speaker in speech.speakers]
    assert speech.held_out.texts == ("Please call Stella.",) * 2 and set(speech.train.texts) == {""}


@pytest.mark.parametrize("subset", ["", "train-clean-100"])
def test_librispeech_has_a_folder_a_chapter_with_its_texts(tmp_path, subset):
    for speaker, chapter in ((19, 198), (19, 227), (7, 5)):
        folder = tmp_path / subset / str(speaker) / str(chapter)
        for number in range(5):
            record(folder / f"{speaker}-{chapter}-{number:04d}.flac")
        lines = [f"{speaker}-{chapter}-{number:04d} SENTENCE {number}" for number in range(5)]
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines))
    speech = open_speech(tmp_path, RATE)
    assert speech.speakers == ("19", "7") and names(speech.held_out) == ["19-227-0004.flac", "7-5-0004.flac"]
    assert speech.held_out.texts == ("SENTENCE 4",) * 2 and len(speech.train) == 13


def test_a_folder_for_each_speaker_will_do(tmp_path):
    for name in ("ann/1.wav", "ann/deep/2.WAV", "bob/1.flac", "bob/2.flac", "cat/1.wav", "cat/.hidden.wav"):
        record(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    speech = open_speech(tmp_path, RATE)
    assert speech.speakers == ("ann", "bob", "cat") and names(speech.held_out) == ["2.WAV", "2.flac"]
    record(tmp_path / "loose.wav")
    with pytest.raises(ValueError, match=r"loose\.wav is in no speaker's folder; put there VCTK's"):
        open_speech(tmp_path, RATE)


def manifest(folder: Path, *lines: str) -> Path:
    for name in "abcd":
        record(folder / "sounds" / f"{name}.wav")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder / "manifest.csv"


@pytest.mark.parametrize(("train", "unseen"), [("train", "unseen_speakers"), ("learnt", "unheard")])
def test_a_csv_file_says_who_and_what_and_which_split_also_by_its_old_name(tmp_path, train, unseen):
    lines = ("path,text,split,speaker", f'sounds/b.wav,"Yes, you.",{train},ann', "sounds/a.wav,No.,held_out,ann")
    path = manifest(tmp_path, *lines, f"sounds/c.wav,No.,{unseen},bob", f"sounds/d.wav,,{train},cat")
    for source in (path, tmp_path):
        speech = open_speech(source, RATE)
        assert speech.speakers == ("ann", "cat") and names(speech.train) == ["b.wav", "d.wav"]
        assert speech.train.texts == ("Yes, you.", "") and names(speech.held_out) == ["a.wav"]
        assert speech.unseen_speakers is not None and speech.unseen_speakers.speakers.tolist() == [-1]


def test_a_csv_file_without_splits_holds_every_tenth_out(tmp_path):
    path = manifest(tmp_path, "path,speaker", *(f"sounds/{name}.wav,ann" for name in "dcba"))
    assert names(open_speech(path, RATE).held_out) == ["a.wav"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,who", "sounds/a.wav,ann"], "line 1: must name the columns path and speaker, has 'path,who'"),
        (["path,speaker", "sounds/a.wav,ann", "sounds/b.wav"], "line 3: expected 2 fields: path,speaker"),
        (["path,speaker", "sounds/a.wav,ann,more"], "line 2: expected 2 fields"),
        (["path,speaker", "sounds/a.wav,"], "line 2: has no speaker"),
        (["path,speaker", "sounds/z.wav,ann"], r"line 2: there is no file .*z\.wav"),
        (["path,speaker", "sounds/a.wav,ann", "sounds/a.wav,bob"], r"line 3: sounds/a\.wav is there twice"),
        (["path,speaker,split", "sounds/a.wav,ann,test"], "line 2: split must be one of train, .*, got 'test'"),
        (["path,speaker", 'sounds/a.wav,"ann'], "after line 1: unexpected end of data"),
        (["path,speaker"], "lists no recordings"),
        (["path,speaker", "sounds/a.wav,ann"], "has no held_out recordings, of 1"),
        (["path,speaker,split", "sounds/a.wav,ann,held_out"], "has no train recordings, of 1"),
        (
            ["path,speaker,split", "sounds/a.wav,ann,train", "sounds/b.wav,bob,held_out"],
            r"has bob in held_out \(b\.wav\) but not in train",
        ),
        (
            ["path,speaker,split", "sounds/a.wav,ann,train", "sounds/b.wav,ann,held_out", "sounds/c.wav,ann,unheard"],
            r"has ann in unseen_speakers \(c\.wav\) and also in train",
        ),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        open_speech(manifest(tmp_path, *lines), RATE)


def test_what_is_no_speech_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing at .*nowhere; nothing is downloaded: put there VCTK's"):
        open_speech(tmp_path / "nowhere", RATE)
    with pytest.raises(ValueError, match=r"holds no sounds \(\.wav, .*\); put there VCTK's"):
        open_speech(tmp_path, RATE)
    with pytest.raises(ValueError, match="--rate must be 1 sample a second or more, got 0"):
        open_speech(tmp_path, 0)
    with pytest.raises(ValueError, match=r"a\.wav must be a \.csv file or a folder"):
        open_speech(record(tmp_path / "a.wav"), RATE)
    (tmp_path / "wav48").mkdir()
    with pytest.raises(ValueError, match="wav48 holds no sounds in speakers' folders"):
        open_speech(tmp_path, RATE)


def test_a_damaged_recording_is_named_when_it_is_read(tmp_path):
    digits(tmp_path)
    speech = open_speech(tmp_path, RATE)
    speech.train.paths[1].write_bytes(b"no sound")
    assert len(speech.train.mu_law(0)) == 20
    for use in (speech.train.mu_law, speech.train.waveform, lambda index: SpeechBatches(speech.train, 1, 8, 0)):
        with pytest.raises(ValueError, match=r"0_theo_5\.wav is no sound file, or damaged"):
            use(1)


def test_what_is_cut_off_or_empty_is_named_before_training(tmp_path):
    digits(tmp_path)
    recordings = open_speech(tmp_path, RATE).train
    whole = recordings.paths[1].read_bytes()
    recordings.paths[1].write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"0_theo_5\.wav is cut off: its last 5 bytes are missing"):
        SpeechBatches(recordings, 1, 8, 0)
    audio.save(recordings.paths[1], np.zeros(0), RATE)
    with pytest.raises(ValueError, match=r"0_theo_5\.wav is empty"):
        SpeechBatches(recordings, 1, 8, 0)


def test_what_was_read_is_kept_up_to_a_size(tmp_path):
    digits(tmp_path)
    found = open_speech(tmp_path, RATE).train
    few = Recordings([], (), RATE, cache_bytes=45)
    few.paths, few.speakers, few.texts = found.paths, found.speakers, found.texts
    first = few.mu_law(0)
    assert few.mu_law(0) is first and np.array_equal(first, audio.mu_law_encode(few.waveform(0)))
    few.mu_law(1), few.mu_law(0), few.mu_law(2)
    assert few.mu_law(2) is few.mu_law(2) and few.mu_law(0) is not first, "50 bytes and then 70 do not fit into 45"


@pytest.fixture
def uneven(tmp_path: Path) -> Recordings:
    """A short recording of ann, at another rate, and one of bob that is nine times as long."""
    for name in ("a", "b"):
        record(tmp_path / "ann" / f"{name}.wav", 0.02, 0.2, 2 * RATE)
        record(tmp_path / "bob" / f"{name}.wav", 0.18, 0.9)
    return open_speech(tmp_path, RATE).train


def test_a_batch_is_a_function_of_seed_and_number(uneven):
    batches, same = SpeechBatches(uneven, 4, 30, 0), SpeechBatches(uneven, 4, 30, 0)
    whole = batches(7)
    assert whole.samples.shape == (4, 30) and whole.samples.dtype == torch.uint8
    assert whole.lengths.dtype == whole.speakers.dtype == torch.int64
    for part, again in zip(whole, same(7), strict=True):
        assert torch.equal(part, again)
    assert not torch.equal(whole.samples, batches(8).samples)
    assert not torch.equal(whole.samples, SpeechBatches(uneven, 4, 30, 1)(7).samples)
    halves = [batches(7, rank, 2) for rank in range(2)]
    for part, *own in zip(whole, *halves, strict=True):
        assert torch.equal(part, torch.cat(own))


@pytest.mark.slow
def test_segments_are_of_recordings_and_as_likely_as_those_are_long(uneven):
    batch = SpeechBatches(uneven, 2000, 30, 0)(0)
    assert 0.87 < batch.speakers.float().mean() < 0.93
    ann, bob = uneven.mu_law(0), uneven.mu_law(1)
    starts = set()
    for samples, length, speaker in zip(*batch, strict=True):
        if speaker == 0:
            assert length == 20 and np.array_equal(samples[:20], ann) and (samples[20:] == audio.SILENCE).all()
        else:
            places = [start for start in range(151) if np.array_equal(bob[start : start + 30], samples)]
            assert length == 30 and places
            starts.update(places)
    assert {0, 150} <= starts and len(starts) > 140, "from the first segment to the last"


def test_a_segment_must_have_a_length(uneven):
    with pytest.raises(ValueError, match="a segment must have 1 sample or more, got 0"):
        SpeechBatches(uneven, 4, 0, 0)
    with pytest.raises(ValueError, match="--batch_size must be 1 or more, got 0"):
        SpeechBatches(uneven, 0, 8, 0)(0)


def test_phonemes_lie_beside_a_recording_in_its_own_samples(uneven):
    with pytest.raises(FileNotFoundError, match=r"there are no phonemes .*a\.phn"):
        uneven.phonemes(0)
    uneven.paths[0].with_suffix(".phn").write_text("0 10 pau\n10 40 iy\n")
    found = uneven.phonemes(0)  # recorded at twice the rate
    assert (found.starts.tolist(), found.stops.tolist()) == ([0, 5], [5, 20])
    labels = phonemes.frame_labels(found, 4, 6)  # centers 2, 6, 10, 14, 18, 22
    assert [phonemes.CLASSES[label] for label in labels] == ["pau", "iy", "iy", "iy", "iy", "pau"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 10\n", "line 1: expected START STOP PHONEME, got '0 10'"),
        ("0 x iy\n", "line 1: expected START STOP PHONEME"),
        ("0 10 iy\n10 20 yi\n", "line 2: unknown phoneme 'yi': expected one of pau, aa, .*; did you mean 'y'"),
        ("0 10 iy\n5 20 iy\n", "line 2: must start at 10 or later"),
        ("10 10 iy\n", "line 1: must start at 0 or later and end after that"),
    ],
)
def test_what_is_wrong_with_phonemes_is_named(tmp_path, text, message):
    (tmp_path / "a.phn").write_text(text)
    with pytest.raises(ValueError, match=message):
        phonemes.read_phn(tmp_path / "a.phn")


def test_phonemes_are_written_as_they_are_read(tmp_path):
    text = "0 10 pau\n10 20 iy\n30 31 zh\n"
    (tmp_path / "a.phn").write_text(text)
    assert phonemes.format_phn(phonemes.read_phn(tmp_path / "a.phn")) == text
    (tmp_path / "a.phn").write_text("")
    assert len(phonemes.read_phn(tmp_path / "a.phn").classes) == 0
    assert phonemes.frame_labels(phonemes.read_phn(tmp_path / "a.phn"), 4, 3).tolist() == [0, 0, 0]


def test_the_61_phones_of_timit_are_folded_into_the_classes(tmp_path):
    timit = "h# sh iy hv ae dcl d y er aa kcl k s ux tcl t q en gcl g r ix w dx axr ax-h nx eng el em epi bcl pcl pau"
    (tmp_path / "a.phn").write_text("".join(f"{n} {n + 1} {phone}\n" for n, phone in enumerate(timit.split())))
    found = [phonemes.CLASSES[index] for index in phonemes.read_phn(tmp_path / "a.phn").classes]
    expected = "pau sh iy hh ae pau d y er aa pau k s uw pau t pau n pau g r ih w t er ax n ng l m pau pau pau pau"
    assert found == expected.split()
    renamed = " ".join(phonemes.TIMIT_CLASSES.values()).split()
    assert len(set(phonemes.CLASSES) | set(renamed)) == 61
    assert not set(phonemes.CLASSES) & set(renamed)


def test_every_mnemonic_has_one_of_41_classes():
    assert len(phonemes.CLASSES) == 41
    every = " ".join(phonemes.MNEMONICS.values()).split()
    assert len(every) == len(set(every))
    assert [phonemes.phoneme_class(name) for name in ("_:", "@", "3:", "'aI", "aI7", "t#", "n-", "")] == (
        ["pau", "ax", "er", "ay", "ay", "t", "n", "pau"]
    )
    with pytest.raises(ValueError, match="espeak-ng's phoneme 'Q' is in none of 41 classes"):
        phonemes.phoneme_class("Q")
