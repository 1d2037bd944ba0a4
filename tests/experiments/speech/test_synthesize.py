"""Synthesized speech is the same every time, and its phonemes fill it."""

import json
from pathlib import Path

import numpy as np
import pytest

from worldmodel.experiments.speech.data import audio, espeak
from worldmodel.experiments.speech.data.dataset import SpeechBatches, open_speech
from worldmodel.experiments.speech.data.phonemes import CLASSES, PAUSE
from worldmodel.experiments.speech.data.sentences import WORDS, generate_sentences, read_sentences
from worldmodel.experiments.speech.synthesize import align_phonemes, pitch_and_speed, synthesize, synthesize_utterance

pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def is_here() -> bool:
    try:
        espeak.load_library()
    except ImportError:
        return False
    return True


needs_espeak = pytest.mark.skipif(not is_here(), reason="needs espeak-ng's library: apt install espeak-ng")
RATE = 16_000


def labels(phonemes) -> list[str]:
    return [CLASSES[number] for number in phonemes.classes]


def test_phonemes_fill_the_utterance_and_pauses_in_a_row_are_one():
    sounds = [(220, "h"), (2205, "@"), (2205, "oU"), (4410, "_:"), (5000, "_"), (6615, "_")]
    found = align_phonemes(sounds, 5000, 16_000)
    assert labels(found) == [PAUSE, "hh", "ow", PAUSE], "a vowel of no samples is left out"
    assert found.starts.tolist() == [0, 159, 1600, 3200] and found.stops.tolist() == [159, 1600, 3200, 5000]
    assert labels(align_phonemes([], 100, RATE)) == [PAUSE]
    with pytest.raises(ValueError, match="phoneme 'Q' is in none of 41 classes"):
        align_phonemes([(0, "Q")], 100, RATE)


def test_our_own_sentences_differ_and_more_of_them_begin_with_the_same():
    few, many = generate_sentences(50, 0), generate_sentences(200, 0)
    assert len(set(many)) == 200 and many[:50] == few and generate_sentences(50, 1) != few
    assert few[0][0].isupper() and few[0].endswith(".")
    with pytest.raises(ValueError, match=r"100000000000 is more than half of the \d+ generated sentences; give a file"):
        generate_sentences(10**11, 0)


def test_pitch_and_speed_follow_from_a_voices_name():
    every = [pitch_and_speed(f"{voice}+{variant}") for voice in ("en", "en-us") for variant in ("f1", "f2", "m1", "m2")]
    assert len(set(every)) == 8 and every[0] == pitch_and_speed("en+f1")
    assert all(30 <= pitch <= 70 and 150 <= speed <= 190 for pitch, speed in every)


def test_sentences_are_the_different_lines_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\n Two \t words\nOne.\n")
    assert read_sentences(tmp_path / "a.txt") == ["One.", "Two words"]
    with pytest.raises(ValueError, match="ask for 3 sentences, and there are 2 different"):
        synthesize(str(tmp_path / "out"), str(tmp_path / "a.txt"), ["en"], [], 2, 1)
    with pytest.raises(FileNotFoundError, match=r"no file of sentences .*b\.txt"):
        read_sentences(tmp_path / "b.txt")
    for name in ("c.txt", "c.txt.gz"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match=r"c\.txt.* must be UTF-8 text, one sentence a line"):
            read_sentences(tmp_path / name)


def test_what_cannot_be_made_is_refused_before_anything_is(tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="--count, --held_out, --rate and --workers must be 1 or more"):
        synthesize(out, count=0)
    for voices in (["en+f1"], ["gmw/en"], [".."]):
        with pytest.raises(ValueError, match=r"must be distinct and valid names of folders, got '.*'"):
            synthesize(out, voices=voices, unseen_voices=["en+f1"])
    assert not Path(out).exists()


def test_without_espeak_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(espeak, "LIBRARY_NAMES", ("libnowhere.so.1",))
    with pytest.raises(ImportError, match=r"libnowhere\.so\.1 is not installed: apt install espeak-ng"):
        synthesize(str(tmp_path / "out"))


@needs_espeak
def test_an_utterance_is_the_same_every_time_and_filled_with_its_phonemes():
    waveform, phonemes = synthesize_utterance("The quick brown fox.", "en-us+f1", RATE)
    again, same = synthesize_utterance("The quick brown fox.", "en-us+f1", RATE)
    assert np.array_equal(waveform, again) and all(map(np.array_equal, phonemes, same))
    assert waveform.dtype == np.float32 and 0.05 < abs(waveform).max() <= 1 and 0.8 < len(waveform) / RATE < 3
    assert phonemes.starts[0] == 0 and phonemes.stops[-1] == len(waveform)
    assert np.array_equal(phonemes.starts[1:], phonemes.stops[:-1]) and (phonemes.stops > phonemes.starts).all()
    assert " ".join(labels(phonemes)) == "pau dh ax k w ih k b r aw n f aa k s pau"


@needs_espeak
def test_the_sound_of_a_phoneme_is_where_it_is_said_to_be():
    waveform, phonemes = synthesize_utterance("See shoes, moo.", "en-us+m3", RATE)
    segments = [waveform[start:stop] for start, stop in zip(phonemes.starts, phonemes.stops, strict=True)]
    by_name = dict(zip(labels(phonemes), segments, strict=True))  # the last of each
    loudness = {name: np.sqrt(np.mean(segment**2)) for name, segment in by_name.items()}
    crossings = {name: np.mean(np.diff(np.sign(segment)) != 0) for name, segment in by_name.items()}
    assert loudness["uw"] > 10 * loudness[PAUSE]
    assert crossings["s"] > crossings["sh"] > 2 * crossings["uw"], "a hiss crosses zero often"


@needs_espeak
def test_what_espeak_cannot_say_is_named(tmp_path):
    for voice in ("en-us+nosuch", "xx", "en+../en"):
        with pytest.raises(ValueError, match=r"cannot be said by .*: espeak-ng has no voice"):
            synthesize_utterance("Hello.", voice, RATE)
    with pytest.raises(ValueError, match=r"'Hello\.' cannot be said by en\+f99"):
        synthesize(str(tmp_path / "out"), unseen_voices=["en+f99"])
    assert not (tmp_path / "out").exists(), "all voices are tried first"
    with pytest.raises(ValueError, match=r"'\.\.\.' has nothing that en can say; leave it out"):
        synthesize_utterance("...", "en", RATE)
    with pytest.raises(ValueError, match="is in none of 41 classes; take English voices"):
        synthesize_utterance("Tür, schön, ich möchte Brötchen.", "de", RATE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    synthesize(str(folder), "", ["en-us+f1", "en+m1"], ["en-gb-scotland+m3"], count=3, held_out=2, rate=8000)
    return folder


@needs_espeak
def test_a_corpus_is_opened_as_speech(corpus):
    speech = open_speech(corpus, 8000)
    assert speech.speakers == ("en+m1", "en-us+f1")
    assert (len(speech.train), len(speech.held_out), len(speech.unseen_speakers)) == (6, 4, 2)
    assert speech.train.texts[:3] == speech.train.texts[3:], "all say the same"
    assert speech.held_out.texts[:2] == speech.unseen_speakers.texts
    assert not set(speech.held_out.texts) & set(speech.train.texts)
    for part in (speech.train, speech.held_out, speech.unseen_speakers):
        for index in range(len(part)):
            assert part.phonemes(index).stops[-1] == len(part.mu_law(index)) == part.lengths[index]
    assert SpeechBatches(speech.train, 2, 4000, 0)(0).lengths.tolist() == [4000, 4000]


@needs_espeak
def test_a_corpus_that_was_begun_is_finished_and_the_same(corpus, tmp_path, monkeypatch):
    arguments = ("", ["en-us+f1", "en+m1"], ["en-gb-scotland+m3"], 3, 2, 8000)
    made = []

    def save(path: Path, *more) -> None:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(path)
        kept(path, *more)

    kept = audio.save
    monkeypatch.setattr(audio, "save", save)
    with pytest.raises(KeyboardInterrupt):
        synthesize(str(tmp_path), *arguments)
    assert not (tmp_path / "manifest.csv").exists()
    monkeypatch.setattr(audio, "save", lambda path, *more: (made.append(path), kept(path, *more)))
    synthesize(str(tmp_path), *arguments, workers=3)
    assert len(made) == len(set(made)) == 12, "none is made twice"
    files = {path.relative_to(corpus): path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    settings = json.loads(files[Path("synthesis.json")])
    assert tuple(settings["voices"]["en+m1"].values()) == pitch_and_speed("en+m1") and len(settings["train"]) == 3
    old = {{"train": "learnt", "unseen_speakers": "unheard"}.get(name, name): part for name, part in settings.items()}
    (tmp_path / "synthesis.json").write_text(json.dumps(old, indent=2) + "\n")  # as version 0.1.0 wrote it
    synthesize(str(tmp_path), *arguments)
    with pytest.raises(ValueError, match=r"holds a corpus of other settings \(synthesis\.json\); use another --out"):
        synthesize(str(tmp_path), *arguments, seed=1)


@needs_espeak
def test_our_own_sentences_have_every_phoneme():
    spoken = set()
    for start in range(0, 16, 4):  # every word, but for a few of the first rows
        text = ". ".join(" ".join(row[place % len(row)] for row in WORDS) for place in range(start, start + 4))
        spoken |= set(labels(synthesize_utterance(text, "en-us", 8000)[1]))
    assert spoken == set(CLASSES)
