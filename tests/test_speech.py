"""Speech through the VQ-VAE of sound: what it hears and is told, and every program on a tiny corpus."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import train_config
from worldmodel import checkpoint, config
from worldmodel.core.bottleneck import QuantizerConfig
from worldmodel.core.layers import Whitening, strided
from worldmodel.core.prior import SpatialPriorConfig
from worldmodel.core.sampling import draw
from worldmodel.core.speech import TOLD_EVERY, SpeechBatch, SpeechConfig, SpeechVQVAE, heard, jittered, spectra
from worldmodel.data import sound
from worldmodel.experiments.speech.knowing import phonemes
from worldmodel.experiments.speech.learning import prior, train
from worldmodel.experiments.speech.measuring import elsewhere, evaluate
from worldmodel.experiments.speech.using import convert, sample
from worldmodel.experiments.speech.voices import Voices, filled, mean_bits

RATE = 4000
SMALL = SpeechConfig(
    speakers=2,
    strides=(2, 2, 4),
    hidden=8,
    residual_hidden=8,
    residual_blocks=1,
    quantizer=QuantizerConfig(codes=16, dim=8),
    width=8,
    channels=8,
    layers=3,
    cycle=3,
    skip=8,
)
PITCHES = {"low": 200, "high": 600}  # hertz of the two who speak


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two who say three things four times, each a tone that falls or rises or stays, with phonemes beside."""
    folder, random = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    rows = ["path,speaker,text,split"]
    for speaker, pitch in {**PITCHES, "strange": 400}.items():
        for text, slope in (("down", -0.3), ("level", 0.0), ("up", 0.3)):
            for number in range(4):
                time = np.arange(900 + 16 * number) / RATE
                wave = 0.5 * np.sin(2 * np.pi * pitch * (1 + slope * time) * time) + 0.01 * random.normal(
                    size=len(time)
                )
                path = folder / speaker / f"{text}-{number}.wav"
                sound.save(path, wave.astype(np.float32), RATE)
                path.with_suffix(".phn").write_text(f"0 450 aa\n450 {len(wave)} s\n")
                part = "unheard" if speaker == "strange" else "held_out" if number == 3 else "learnt"
                rows.append(f"{path.relative_to(folder)},{speaker},{text},{part}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "speech"
    train(str(corpus), str(folder), RATE, SMALL, train_config(steps=3), batch=4, length=256)
    return folder


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SpeechVQVAE(SMALL).eval()


def batch(length=64, seed=0):
    samples = torch.randint(256, (3, length), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return SpeechBatch(samples, torch.tensor([length, length // 2, 5]), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("strides", [(2,) * 6, (2,) * 7, (5, *(2,) * 7), (3, 2)])
def test_a_stack_of_strides_divides_a_length_exactly(strides):
    hop = int(np.prod(strides))
    assert torch.nn.Sequential(*strided(1, 1, 4, strides))(torch.zeros(1, 1, 3 * hop)).shape == (1, 4, 3)
    small = SpeechVQVAE(
        SpeechConfig(strides=strides, hidden=4, residual_hidden=4, width=4, channels=4, layers=2, skip=4)
    )
    codes = small.encode(torch.zeros(1, 2 * hop, dtype=torch.uint8))
    told = small.told(2 * hop, torch.tensor([0]), codes)
    assert codes.shape == (1, 2) and told.shape[1] * (2 * hop // told.shape[1]) == 2 * hop
    assert hop < TOLD_EVERY or 2 * hop // told.shape[1] >= TOLD_EVERY


def test_silence_after_a_recording_counts_for_nothing(network):
    first = batch()
    changed = first.samples.clone()
    changed[1, 40:] = 7  # of 32
    codes = network.encode(first.samples)  # the same, so that only what is foretold differs
    bits = [
        mean_bits(network.bits(samples, first.speakers, codes), first.lengths) for samples in (first.samples, changed)
    ]
    assert torch.equal(*bits)
    _, metrics = network(first)
    inside = torch.arange(64) < first.lengths[:, None]
    expected = network.bits(first.samples, first.speakers, codes)[inside].mean()
    assert float(metrics["bits_per_sample"]) == pytest.approx(float(expected), rel=1e-5)


def test_samples_depend_on_codes_around_them_and_on_who_speaks_and_on_samples_before(network):
    first = batch()
    samples, speakers, codes = first.samples, first.speakers, network.encode(first.samples)
    bits = network.bits(samples, speakers, codes)
    assert not torch.allclose(network.bits(samples, 1 - speakers, codes), bits)
    assert not torch.allclose(network.bits(samples, speakers, None), bits)
    later = samples.clone()
    later[:, 50:] = 255 - later[:, 50:]
    assert torch.equal(network.bits(later, speakers, codes)[:, :50], bits[:, :50])
    assert not torch.allclose(network.bits(later, speakers, codes)[:, 51:], bits[:, 51:])


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_what_is_said_is_what_full_passes_would_say(network, temperature):
    first = batch(32)
    codes, uniforms = network.encode(first.samples), torch.rand(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        told = network.told(32, first.speakers, codes)
        said = network.net.sample(told, uniforms, temperature)
        logits = network.net(said, told)
    assert torch.equal(draw(logits, uniforms, temperature), said)


def test_everything_learns(network):
    network.train()
    loss, _ = network(batch(), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in network.encoder.parameters())
    untold = SpeechVQVAE(replace(SMALL, untold=0.99)).train()
    untold(batch(), torch.Generator().manual_seed(0))[0].backward()
    assert untold.nothing.grad.abs().sum() > 0


@pytest.mark.parametrize("strides", [(2, 2, 4), (2,) * 7, (5, *(2,) * 7), (3, 2, 4)])
def test_a_spectrum_is_heard_at_the_middle_of_its_codes(strides):
    torch.manual_seed(0)
    net = SpeechVQVAE(replace(SMALL, strides=strides, hears="spectrum", plain=0.5)).eval()
    hop = net.config.hop
    samples = torch.full((1, 9 * hop), sound.SILENCE, dtype=torch.uint8)
    quiet = net.vectors(samples.long())
    samples[:, 4 * hop : 5 * hop] = torch.randint(256, (hop,), dtype=torch.uint8)
    changed = (net.vectors(samples.long()) - quiet).abs().sum((0, 1))
    assert quiet.shape == (1, 8, 9) and int(changed.argmax()) in (3, 4, 5)
    assert changed[0] == changed[8] == 0
    loss, metrics = net(SpeechBatch(samples, torch.tensor([9 * hop]), torch.tensor([0])))
    assert torch.isfinite(loss) and metrics["spectral_error"] > 0


def test_a_tone_is_loudest_in_the_band_of_its_frequency():
    time = np.arange(4096) / 8000
    tone = torch.from_numpy(sound.mu_law(0.02 * np.sin(2 * np.pi * 1000 * time)))[None]
    found = spectra(tone.long(), 64)
    assert found.shape == (1, 64, 65)
    assert int(found[0, 32].argmax()) == 1000 / (8000 / 128)


def test_whitened_vectors_have_as_much_variance_in_one_direction_as_in_another():
    random = torch.Generator().manual_seed(0)
    loud = torch.randn(64, 1, 100, generator=random)
    z = 5 + loud + 0.05 * torch.randn(64, 8, 100, generator=random)  # nearly a line
    layer = Whitening(8, least=1e-6).train()
    for part in z.split(4):
        layer(part)
    flat = layer.eval()(z).movedim(1, -1).flatten(0, 1)
    assert torch.allclose(flat.mT.cov(), torch.eye(8), atol=0.3)
    assert flat.mean(0).abs().max() < 0.3
    faint = Whitening(8).train()
    for part in (torch.randn(4, 1, 100, generator=random).expand(-1, 8, -1) for _ in range(20)):
        faint(part)
    nothing = faint.eval()(torch.randn(4, 1, 100, generator=random).expand(-1, 8, -1))
    assert nothing.var() < 2 and torch.isfinite(nothing).all()  # there is nothing in seven of eight directions


def test_what_never_changes_is_whitened_to_nothing():
    layer = Whitening(8).train()
    assert torch.equal(layer(torch.full((2, 8, 3), 7.0)), torch.zeros(2, 8, 3))


def test_at_the_beginning_nothing_is_quantized():
    torch.manual_seed(0)
    net = SpeechVQVAE(replace(SMALL, startup=2)).train()
    before = net.quantizer.codebook.clone()
    for step in range(3):
        _, metrics = net(batch(), torch.Generator().manual_seed(step))
        assert ("perplexity" in metrics) == (step == 2)
        assert torch.equal(net.quantizer.codebook, before) == (step < 2)


def test_the_first_codes_differ_where_the_sound_does():
    torch.manual_seed(0)
    deep = SpeechVQVAE(SpeechConfig())
    noise = torch.randint(256, (1, 4096), dtype=torch.uint8)
    found = deep.encoder(heard(noise.long()))
    assert found.std(-1).mean() > 0.1  # 0.001 if they begin as PyTorch begins convolutions


def test_jitter_takes_neighbours_as_often_as_it_says():
    vectors = torch.arange(10_000.0).view(1, 1, -1)
    moved = jittered(vectors, 0.2, torch.Generator().manual_seed(0)) - vectors
    assert set(moved.unique().tolist()) == {-1, 0, 1}
    assert float((moved != 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float((moved > 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(jittered(vectors, 0.0), vectors)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strides": ()}, "strides"),
        ({"strides": (1, 2)}, "strides"),
        ({"jitter": 1.5}, "jitter"),
        ({"untold": -1}, "untold"),
    ],
)
def test_a_wrong_setting_is_named(wrong, message):
    with pytest.raises(ValueError, match=f"model.{message} must be"):
        SpeechConfig(**wrong)


def test_a_line_that_is_no_multiple_of_the_hop_is_refused(network):
    with pytest.raises(ValueError, match="65 samples must be a multiple of the 16"):
        network.encode(torch.zeros(1, 65, dtype=torch.uint8))


def test_a_recording_is_filled_with_silence_up_to_a_whole_code():
    assert [len(filled(np.zeros(size, np.uint8), 16)) for size in (0, 1, 16, 17)] == [16, 16, 16, 32]
    assert filled(np.zeros(1, np.uint8), 16)[-1] == sound.SILENCE


def test_training_writes_a_run_that_loads_and_goes_on(corpus, run, tmp_path):
    voices = Voices.load(run)
    assert voices.speakers == ("high", "low") and voices.rate == RATE
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"bits_per_sample", "bits_per_sample_shuffled", "bits_per_sample_none", "perplexity"} <= set(lines[-1])
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder, steps in ((whole, 4), (parted, 2), (parted, 4)):
        settings = replace(train_config(steps=steps), decay=0.0)
        train(str(corpus), str(folder), RATE, SMALL, settings, batch=4, length=256)
    assert checkpoint.digest(whole) == checkpoint.digest(parted)


def test_an_utterance_is_the_same_alone_and_among_others(run):
    voices = Voices.load(run)
    codes = [torch.arange(length) % 16 for length in (5, 3, 9)]
    together = voices.say(codes, [0, 1, 0], seed=3)
    assert [len(part) for part in together] == [80, 48, 144]
    for number, line in enumerate(codes):
        alone = voices.say([line], [[0, 1, 0][number]], seed=3 + number)[0]
        assert (alone == together[number]).mean() > 0.95  # but for rounding
        told = voices.network.told(len(line) * 16, torch.tensor([[0, 1, 0][number]]), line[None])
        assert torch.equal(voices._told(line, [0, 1, 0][number]), told[0])
    with pytest.raises(ValueError, match=r"unknown speaker 'lo'.*did you mean 'low'"):
        voices.number("lo")
    with pytest.raises(ValueError, match="temperature must be 0 or more"):
        voices.say(codes, [0, 0, 0], temperature=-1.0)


def test_a_recording_of_anybody_is_converted(corpus, run, tmp_path, capsys):
    wav, out = corpus.parent / "strange" / "up-0.wav", tmp_path / "b.wav"
    for _ in range(2):
        convert(str(run), str(wav), "low", str(out), seed=1)
    made = sound.load(out, RATE)
    assert len(made) == 900 and "57 codes, 1000 bits a second" in capsys.readouterr().out
    before = out.read_bytes()
    convert(str(run), str(wav), "low", str(out), seed=1)
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match="--out must end in"):
        convert(str(run), str(wav), "low", str(tmp_path / "b.mp3"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        convert(str(run), str(tmp_path / "none.wav"), "low", str(out))


def test_what_it_keeps_is_measured(corpus, run, tmp_path, capsys):
    evaluate(str(run), str(corpus), str(tmp_path), recordings=6)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["recordings"] == 6 and set(scores["bits_per_sample"]) == {"true", "shuffled", "none"}
    assert scores["text"]["recorded"]["mean"] >= 0.5 and scores["speaker"]["recorded"]["mean"] >= 0.5
    assert set(scores["speaker"]) == {"recorded", "same speaker", "converted is the other", "converted is the first"}
    assert scores["mel_distance"]["converted to target"]["pairs"] == 6
    assert (
        (tmp_path / "sounds.png").exists()
        and (tmp_path / "training.png").exists()
        and len(list(tmp_path.glob("*.wav"))) == 9
    )
    with pytest.raises(ValueError, match="--recordings and --threads must be 1 or more"):
        evaluate(str(run), str(corpus), str(tmp_path), recordings=0)


def test_codes_are_named_after_phonemes(corpus, run, tmp_path, capsys):
    other = tmp_path / "other"
    train(str(corpus), str(other), RATE, SMALL, replace(train_config(steps=2), seed=1), batch=4, length=256)
    phonemes(f"{run},{other}", str(corpus), str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "phonemes.json").read_text())["rows"]
    assert [len(found) for found in rows.values()] == [1, 2, 2, 2, 2]
    frequent = rows["most frequent phoneme"][0]
    assert frequent["learnt"]["mean"] == pytest.approx(0.5, abs=0.05)  # aa and s are equally long
    known, guessed = (rows[name][0]["held_out"]["mean"] for name in ("k-means of log-mel", "random codes"))
    assert guessed == pytest.approx(0.5, abs=0.1) and known > guessed + 0.05  # tones that rise and fall tell something
    assert set(rows["VQ-VAE"][0]) == {"learnt", "held_out", "unheard", "perplexity", "speaker"}
    assert "unheard %" in (tmp_path / "out" / "phonemes.txt").read_text()
    different = tmp_path / "different"
    sizes = replace(SMALL, strides=(2, 4, 4))
    train(str(corpus), str(different), RATE, sizes, train_config(steps=1), batch=4, length=256)
    with pytest.raises(ValueError, match="--runs must agree"):
        phonemes(f"{run},{different}", str(corpus), str(tmp_path / "out"))


def test_a_prior_says_what_nobody_said(corpus, run, tmp_path, capsys):
    folder, out = tmp_path / "prior", tmp_path / "said"
    sizes = SpatialPriorConfig(net="wavenet", hidden=8, layers=3)
    prior(str(corpus), str(run), str(folder), sizes, train_config(steps=2), batch=4, length=20)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"bits_per_code", "bits_per_code_unigram", "bits_per_code_bigram"} <= set(last)
    sample(str(folder), str(out), count=3, codes=30)  # longer than it learnt from
    assert sorted(path.name for path in out.iterdir()) == ["0.wav", "1.wav", "2.wav", "sounds.png"]
    first, second = (sound.load(out / f"{number}.wav", RATE) for number in range(2))
    assert len(first) == 30 * 16 and not np.array_equal(first, second)
    with pytest.raises(ValueError, match="smaller"):
        prior(str(corpus), str(run), str(folder), sizes, train_config(steps=2), length=100_000)


def test_shuffled_codes_are_of_recordings_that_say_something_else():
    texts = ["one", "two", "one", "three", ""]
    found = elsewhere(texts, seed=0)
    assert found == elsewhere(texts, seed=0) and len(found) == 5
    assert all(place != other and (texts[place] != texts[other]) for place, other in enumerate(found))
    assert elsewhere(["one"], 0) == elsewhere(["one", "one"], 0) == []


def test_a_mistake_is_one_line_on_the_command_line(run, tmp_path, monkeypatch, capsys):
    wav = tmp_path / "a.wav"
    programs = {"convert": convert, "train": train}
    for content, message in ((b"", "is no sound file"), (b"RIFF\x24\x00\x00\x00WAVE", "is no sound file")):
        wav.write_bytes(content)
        with pytest.raises(SystemExit) as stopped:
            config.run(
                programs, ["convert", "--run", str(run), "--wav", str(wav), "--speaker", "low", "--out", "b.wav"]
            )
        error = capsys.readouterr().err
        assert stopped.value.code == 1 and error.count("\n") == 1 and message in error and str(wav) in error
    sound.save(wav, np.zeros(500, np.float32), RATE)  # silence is fine
    config.run(programs, f"convert --run {run} --wav {wav} --speaker low --out {tmp_path / 'b.wav'}".split())
    assert len(sound.load(tmp_path / "b.wav", RATE)) == 500


def test_a_run_does_not_go_on_with_other_recordings(corpus, run):
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="was trained on speech with rate 4000, got 8000"):
        train(str(corpus), str(run), 8000, SMALL, train_config(steps=6), batch=4, length=256)
    lines = corpus.read_text().splitlines()
    fewer = corpus.parent / "fewer.csv"
    fewer.write_text("\n".join(line for line in lines if "up-1" not in line) + "\n")
    with pytest.raises(ValueError, match="with learnt 18, got 16"):
        train(str(fewer), str(run), RATE, SMALL, train_config(steps=6), batch=4, length=256)
    assert (run / "config.yaml").read_bytes() == before


def test_recordings_of_others_are_refused(corpus, run, tmp_path):
    text = corpus.read_text().replace(",low,", ",deep,")
    other = corpus.parent / "others.csv"
    other.write_text(text)
    with pytest.raises(ValueError, match=r"speakers \['high', 'low'\], got \['deep', 'high'\]"):
        evaluate(str(run), str(other), str(tmp_path))


def test_a_piece_that_is_no_multiple_of_the_hop_is_refused(corpus, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="--length must be a multiple of the 16 samples of a code, got 100"):
        train(str(corpus), str(tmp_path / "x"), RATE, SMALL, train_config(steps=1), length=100)
    assert not (tmp_path / "x").exists()
