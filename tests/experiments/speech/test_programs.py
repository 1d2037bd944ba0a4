"""Speech: every program on a tiny corpus, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import tones, train_config
from tests.experiments.speech.test_model import SMALL
from worldmodel import checkpoint, cli, tensor_io
from worldmodel.experiments.speech import codec
from worldmodel.experiments.speech.codec import SpeechCodec, pad_to_hop
from worldmodel.experiments.speech.convert import convert
from worldmodel.experiments.speech.data import audio
from worldmodel.experiments.speech.evaluate import evaluate, sample_other_texts
from worldmodel.experiments.speech.phonemes import phonemes
from worldmodel.experiments.speech.prior import prior
from worldmodel.experiments.speech.release import release
from worldmodel.experiments.speech.sample import sample
from worldmodel.experiments.speech.train import train
from worldmodel.models.config import SpatialPriorConfig

RATE = 4000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tones(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "speech"
    train(str(corpus), str(folder), RATE, SMALL, train_config(steps=3), batch_size=4, segment_length=256)
    return folder


def test_a_recording_is_padded_with_silence_up_to_a_whole_code():
    assert [len(pad_to_hop(np.zeros(size, np.uint8), 16)) for size in (0, 1, 16, 17)] == [16, 16, 16, 32]
    assert pad_to_hop(np.zeros(1, np.uint8), 16)[-1] == audio.SILENCE


@pytest.mark.slow
def test_training_writes_a_run_that_loads(run):
    speech_codec = SpeechCodec.load(run)
    assert speech_codec.speakers == ("high", "low") and speech_codec.rate == RATE
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"bits_per_sample", "bits_per_sample_shuffled", "bits_per_sample_none", "perplexity"} <= set(lines[-1])


@pytest.mark.parametrize("aux_only_steps", [0, 3])
@pytest.mark.slow
def test_training_that_was_stopped_goes_on(corpus, tmp_path, aux_only_steps):
    model = replace(SMALL, aux_weight=1.0, aux_only_steps=aux_only_steps, quantizer_warmup_steps=aux_only_steps // 2)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder, steps in ((whole, 4), (parted, 2), (parted, 4)):
        settings = replace(train_config(steps=steps), decay_fraction=0.0)
        train(str(corpus), str(folder), RATE, model, settings, batch_size=4, segment_length=256)
    assert tensor_io.digest(whole) == tensor_io.digest(parted)


@pytest.mark.slow
def test_an_encoder_of_log_mel_is_trained_at_the_rate_of_the_recordings(corpus, tmp_path):
    model = replace(SMALL, strides=(40, 2), encoder_input="mel", aux_weight=1.0, aux_only_steps=4)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder, steps in ((whole, 4), (parted, 2), (parted, 4)):
        settings = replace(train_config(steps=steps), decay_fraction=0.0)
        train(str(corpus), str(folder), RATE, model, settings, batch_size=4, segment_length=320)
    assert tensor_io.digest(whole) == tensor_io.digest(parted)
    speech_codec = SpeechCodec.load(whole)
    assert speech_codec.network.config.sample_rate == RATE
    assert speech_codec.encode(np.zeros(900, np.uint8)).shape == (12,)
    with pytest.raises(ValueError, match="mel needs --rate 4000 or more, got 2000"):
        train(str(corpus), str(tmp_path / "low"), 2000, model, train_config(steps=1), 4, 320)
    assert not (tmp_path / "low").exists()


def test_an_utterance_is_the_same_alone_and_among_others(run):
    speech_codec = SpeechCodec.load(run)
    codes = [torch.arange(length) % 16 for length in (5, 3, 9)]
    together = speech_codec.decode(codes, [0, 1, 0], seed=3)
    assert [len(part) for part in together] == [80, 48, 144]
    for number, line in enumerate(codes):
        alone = speech_codec.decode([line], [[0, 1, 0][number]], seed=3 + number)[0]
        assert (alone == together[number]).mean() > 0.95  # but for rounding
        condition = speech_codec.network.condition_on_codes(
            len(line) * 16, torch.tensor([[0, 1, 0][number]]), line[None]
        )
        assert torch.equal(speech_codec._condition(line, [0, 1, 0][number]), condition[0])
    with pytest.raises(ValueError, match=r"unknown speaker 'lo'.*did you mean 'low'"):
        speech_codec.speaker_index("lo")
    with pytest.raises(ValueError, match="temperature must be a number of 0 or more"):
        speech_codec.decode(codes, [0, 0, 0], temperature=-1.0)


def test_a_recording_of_anybody_is_converted(corpus, run, tmp_path, capsys):
    wav, out = corpus.parent / "strange" / "up-0.wav", tmp_path / "b.wav"
    for _ in range(2):
        convert(str(wav), "low", str(out), str(run), seed=1)
    made = audio.load(out, RATE)
    assert len(made) == 900 and "57 codes, 1000 bits a second" in capsys.readouterr().out
    before = out.read_bytes()
    convert(str(wav), "low", str(out), str(run), seed=1)
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match="--out must end in"):
        convert(str(wav), "low", str(tmp_path / "b.mp3"), str(run))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        convert(str(tmp_path / "none.wav"), "low", str(out), str(run))
    with pytest.raises(FileNotFoundError, match=r"unknown voices 'spoken-digit'.*did you mean 'spoken-digits'"):
        convert(str(wav), "low", str(out), "spoken-digit")


def test_voices_that_are_passed_on_name_no_folder(corpus, run, tmp_path, monkeypatch):
    wav = corpus.parent / "strange" / "up-0.wav"
    release(str(run), str(tmp_path / "tones"))
    monkeypatch.setattr(codec, "SHIPPED", tmp_path)
    for name in ("tones", str(run)):
        convert(str(wav), "high", str(tmp_path / f"{Path(name).name}.wav"), name)
    assert (tmp_path / "tones.wav").read_bytes() == (tmp_path / f"{run.name}.wav").read_bytes()
    assert str(corpus.parent) not in (tmp_path / "tones" / "config.yaml").read_text()
    with pytest.raises(ValueError, match="already exists"):
        release(str(run), str(tmp_path / "tones"))


@pytest.mark.slow
def test_the_voices_that_come_with_the_package_speak(corpus, tmp_path):
    shipped = SpeechCodec.load()
    assert shipped.speakers == ("george", "jackson", "lucas", "nicolas", "theo") and shipped.rate == 8000
    out = tmp_path / "b.wav"
    cli.run(
        {"convert": convert},
        f"convert --wav {corpus.parent / 'strange' / 'up-0.wav'} --speaker george --out {out}".split(),
    )
    assert len(audio.load(out, 8000)) == 1800 and audio.load(out, 8000).std() > 0.01
    files = [path for path in (codec.SHIPPED / codec.DEFAULT_CODEC).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6
    assert shipped.network.steps == checkpoint.read_config(shipped.run)["train"]["steps"]
    one, other = shipped.decode([torch.zeros(20, dtype=torch.int64)] * 2, [0, 1], seed=1)
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_what_it_keeps_is_measured(corpus, run, tmp_path, capsys):
    evaluate(str(run), str(corpus), str(tmp_path), recordings=6)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["recordings"] == 6 and set(scores["bits_per_sample"]) == {"true", "shuffled", "none"}
    assert scores["text"]["recorded"]["mean"] >= 0.8 and scores["speaker"]["recorded"]["mean"] >= 0.8
    assert set(scores["speaker"]) == {"recorded", "same_speaker", "converted_as_target", "converted_as_source"}
    assert set(scores["trained_without_noise"]) == {"speaker", "text"}
    assert scores["mel_distance"]["converted_to_target"]["pairs"] == 6
    assert (
        (tmp_path / "sounds.png").exists()
        and (tmp_path / "training.png").exists()
        and len(list(tmp_path.glob("*.wav"))) == 9
    )
    with pytest.raises(ValueError, match="--recordings must be 1 or more, got 0"):
        evaluate(str(run), str(corpus), str(tmp_path), recordings=0)


@pytest.mark.slow
def test_codes_are_named_after_phonemes(corpus, run, tmp_path, capsys):
    other = tmp_path / "other"
    train(
        str(corpus), str(other), RATE, SMALL, replace(train_config(steps=2), seed=1), batch_size=4, segment_length=256
    )
    phonemes(f"{run},{other}", str(corpus), str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "phonemes.json").read_text())["rows"]
    assert [len(found) for found in rows.values()] == [1, 2, 2, 2, 2, 2]
    frequent = rows["majority"][0]
    assert frequent["train"]["mean"] == pytest.approx(0.5, abs=0.05)  # aa and s are equally long
    known, guessed = (rows[name][0]["held_out"]["mean"] for name in ("kmeans", "random_codes"))
    assert guessed == pytest.approx(0.5, abs=0.1) and known > guessed + 0.05  # tones that rise and fall tell something
    assert set(rows["vqvae"][0]) == {"train", "held_out", "unseen_speakers", "perplexity", "speaker_accuracy"}
    text = (tmp_path / "out" / "phonemes.txt").read_text()
    assert "unseen_speakers %" in text and "k-means of log-mel, less its mean" in text
    different = tmp_path / "different"
    sizes = replace(SMALL, strides=(2, 4, 4))
    train(str(corpus), str(different), RATE, sizes, train_config(steps=1), batch_size=4, segment_length=256)
    with pytest.raises(ValueError, match="--runs must agree"):
        phonemes(f"{run},{different}", str(corpus), str(tmp_path / "out"))


@pytest.mark.slow
def test_recordings_without_phonemes_are_trained_on_and_not_scored(corpus, run, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus.parent, copy)
    labels = sorted(copy.rglob("*.phn"))
    for path in labels[::3]:
        path.unlink()
    phonemes(str(run), str(copy / corpus.name), str(tmp_path / "out"))
    every = scored_frames(corpus, run, tmp_path / "all")
    some = json.loads((tmp_path / "out" / "phonemes.json").read_text())["frames"]
    assert all(0 < some[split] < count for split, count in every.items())
    for path in labels:
        path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"none of the \d+ train recordings, such as .*, has phonemes"):
        phonemes(str(run), str(copy / corpus.name), str(tmp_path / "out"))


def scored_frames(corpus: Path, run: Path, out: Path) -> dict[str, int]:
    """Return the number of frames of each split that were scored."""
    phonemes(str(run), str(corpus), str(out))
    return json.loads((out / "phonemes.json").read_text())["frames"]


@pytest.mark.slow
def test_a_prior_samples_new_utterances(corpus, run, tmp_path, capsys):
    folder, out = tmp_path / "prior", tmp_path / "sampled"
    sizes = SpatialPriorConfig(net="wavenet", hidden_channels=8, num_layers=3)
    prior(str(corpus), str(run), str(folder), sizes, train_config(steps=2), batch_size=4, seq_length=20)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"bits_per_code", "bits_per_code_unigram", "bits_per_code_bigram"} <= set(last)
    sample(str(folder), str(out), count=3, codes=30)  # longer than its training segments
    assert sorted(path.name for path in out.iterdir()) == ["0.wav", "1.wav", "2.wav", "sounds.png"]
    first, second = (audio.load(out / f"{number}.wav", RATE) for number in range(2))
    assert len(first) == 30 * 16 and not np.array_equal(first, second)
    with pytest.raises(ValueError, match="smaller"):
        prior(str(corpus), str(run), str(folder), sizes, train_config(steps=2), batch_size=4, seq_length=100_000)


def test_shuffled_codes_are_of_recordings_that_say_something_else():
    texts = ["one", "two", "one", "three", ""]
    found = sample_other_texts(texts, seed=0)
    assert found == sample_other_texts(texts, seed=0) and len(found) == 5
    assert all(place != other and (texts[place] != texts[other]) for place, other in enumerate(found))
    assert sample_other_texts(["one"], 0) == sample_other_texts(["one", "one"], 0) == []


def write(path: Path, samples: list[float] | np.ndarray, rate: int = RATE) -> None:
    soundfile.write(path, np.asarray(samples, np.float32), rate, subtype="FLOAT")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


WAVE = 0.3 * np.sin(np.arange(600))
BAD = {
    "is no sound file": lambda path: path.write_bytes(b"RIFF\x24\x00\x00\x00WAVE"),
    "is cut off": lambda path: (write(path, WAVE), cut(path)),
    "is empty": lambda path: write(path, []),
    "no finite numbers": lambda path: write(path, [0.0, np.nan, 0.0]),
    "there is no file": lambda path: None,
}
FINE = {
    "silent": lambda path: write(path, np.zeros(600)),
    "stereo": lambda path: write(path, np.stack([WAVE, 0 * WAVE], 1)),
    "of another rate": lambda path: write(path, np.repeat(WAVE, 2), 2 * RATE),
    "of one sample": lambda path: write(path, [0.5]),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_recording_is_one_line_on_the_command_line(run, tmp_path, capsys, message):
    wav, out = tmp_path / "a.wav", tmp_path / "b.wav"
    BAD[message](wav)
    with pytest.raises(SystemExit) as stopped:
        cli.run({"convert": convert}, f"convert --run {run} --wav {wav} --speaker low --out {out}".split())
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.count("\n") == 1 and message in error and str(wav) in error
    assert not out.exists()


@pytest.mark.parametrize("kind", FINE)
def test_a_strange_recording_is_converted(run, tmp_path, kind):
    wav, out = tmp_path / "a.wav", tmp_path / "b.wav"
    FINE[kind](wav)
    cli.run({"convert": convert}, f"convert --run {run} --wav {wav} --speaker low --out {out}".split())
    assert len(audio.load(out, RATE)) == (1 if kind == "of one sample" else 600)


def test_a_run_does_not_go_on_with_other_recordings(corpus, run):
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="was trained on speech with rate 4000, got 8000"):
        train(str(corpus), str(run), 8000, SMALL, train_config(steps=6), batch_size=4, segment_length=256)
    lines = corpus.read_text().splitlines()
    fewer = corpus.parent / "fewer.csv"
    fewer.write_text("\n".join(line for line in lines if "up-1" not in line) + "\n")
    with pytest.raises(ValueError, match="with train 18, got 16"):
        train(str(fewer), str(run), RATE, SMALL, train_config(steps=6), batch_size=4, segment_length=256)
    others = corpus.parent / "others_held_out.csv"  # as many
    swap = {"2": ("train", "held_out"), "3": ("held_out", "train")}
    swapped = [
        line if "unseen" in line else line.replace(*swap.get(line.split(".wav")[0][-1], ("", ""))) for line in lines
    ]
    others.write_text("\n".join(swapped) + "\n")
    with pytest.raises(ValueError, match="with recordings"):
        evaluate(str(run), str(others), str(corpus.parent / "out"))
    assert (run / "config.yaml").read_bytes() == before


def test_a_run_that_never_had_weights_takes_other_recordings(corpus, run, vqvae_run, tmp_path):
    new = tmp_path / "run"
    new.mkdir()
    text = (run / "config.yaml").read_text()
    (new / "config.yaml").write_text(text.replace("rate: 4000", "rate: 8000"))
    train(str(corpus), str(new), RATE, SMALL, train_config(steps=1), batch_size=4, segment_length=256)
    assert checkpoint.read_config(new)["data"]["rate"] == RATE
    with pytest.raises(ValueError, match="was begun with kind vqvae, got speech"):
        train(str(corpus), str(vqvae_run), RATE, SMALL, train_config(steps=1), batch_size=4, segment_length=256)


def test_recordings_of_others_are_refused(corpus, run, tmp_path):
    text = corpus.read_text().replace(",low,", ",deep,")
    other = corpus.parent / "others.csv"
    other.write_text(text)
    with pytest.raises(ValueError, match=r"speakers \['high', 'low'\], got \['deep', 'high'\]"):
        evaluate(str(run), str(other), str(tmp_path))


def test_a_segment_that_is_no_multiple_of_the_hop_is_refused(corpus, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="--segment_length must be a multiple of 16, the samples per code, got 100"):
        train(str(corpus), str(tmp_path / "x"), RATE, SMALL, train_config(steps=1), segment_length=100)
    assert not (tmp_path / "x").exists()
