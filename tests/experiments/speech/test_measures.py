"""The measures of sounds and of codes of speech, by cases whose answers are known."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from worldmodel.experiments.speech import phoneme_scores
from worldmodel.experiments.speech.classifiers import AudioClassifier, classify, train_classifier
from worldmodel.experiments.speech.mel import (
    NUM_BANDS,
    POWER_FLOOR,
    dtw_distance,
    hz_to_mel,
    log_mel,
    mel_distance,
    plot_sounds,
)


def tone(frequency: float, samples: int, rate: int, amplitude: float = 0.5, phase: float = 0.0) -> Tensor:
    return amplitude * torch.sin(2 * math.pi * frequency * torch.arange(samples) / rate + phase)


def noise(samples: int, seed: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def melody(samples: int, rate: int, *frequencies: float) -> Tensor:
    return torch.cat([tone(frequency, samples, rate) for frequency in frequencies])


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050])
@pytest.mark.parametrize("frequency", [150, 440, 1000, 3000])
def test_a_tone_is_loudest_in_the_band_about_it(rate, frequency):
    spectrum = log_mel(tone(frequency, rate // 4, rate), rate)
    place = hz_to_mel(torch.tensor(float(frequency))) / hz_to_mel(torch.tensor(rate / 2)) * (NUM_BANDS + 1) - 1
    assert (spectrum[3:-3].argmax(1) - place).abs().max() < 1


def test_a_tone_is_as_loud_at_every_rate_and_twice_the_amplitude_is_6_db():
    low, high = (log_mel(tone(1000, rate // 4, rate), rate)[12].exp().sum() for rate in (8000, 16_000))
    assert low == pytest.approx(float(high), rel=0.1)
    soft, loud = (log_mel(tone(1000, 2000, 8000, amplitude), 8000)[12].max() for amplitude in (0.2, 0.4))
    assert loud - soft == pytest.approx(math.log(4), abs=1e-3)


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (80, 1), (81, 2), (8000, 100)])
def test_a_sound_of_any_length_has_a_frame_for_each_10_ms_begun(samples, frames):
    assert log_mel(np.zeros(samples, np.float32), 8000).shape == (frames, NUM_BANDS)
    assert log_mel(torch.ones(samples), 8000).isfinite().all()


def test_silence_is_at_the_floor():
    assert torch.equal(log_mel(torch.zeros(400), 8000), torch.full((5, NUM_BANDS), POWER_FLOOR).log())


def test_a_frame_is_about_the_middle_of_its_10_ms():
    click = torch.zeros(1600)
    click[5 * 80 + 40] = 1
    power = log_mel(click, 8000).exp().sum(1)
    assert power.argmax() == 5
    assert power[4] == pytest.approx(float(power[6]), rel=1e-4)


def test_only_mono_sounds_at_an_audible_rate_have_spectrograms():
    with pytest.raises(ValueError, match=r"mono waveform .* got \(2, 100\)"):
        log_mel(torch.zeros(2, 100), 8000)
    with pytest.raises(ValueError, match=r"one sample or more, got \(0,\)"):
        log_mel(torch.zeros(0), 8000)
    with pytest.raises(ValueError, match="4000 Hz or more, got 2000"):
        log_mel(torch.zeros(100), 2000)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (3, 7), (6, 6), (7, 4)])
def test_warping_finds_the_best_of_all_ways(shape):
    costs = np.random.default_rng(sum(shape)).random(shape)

    @cache
    def least(i: int, j: int) -> float:
        """By the definition: the best sum of steps up to a cell."""
        if i < 0 or j < 0:
            return math.inf
        if i == j == 0:
            return 2 * costs[0, 0]
        return min(least(i - 1, j) + costs[i, j], least(i, j - 1) + costs[i, j], least(i - 1, j - 1) + 2 * costs[i, j])

    assert dtw_distance(costs) == pytest.approx(least(shape[0] - 1, shape[1] - 1) / sum(shape), abs=1e-12)


def test_a_sound_is_no_way_from_itself_at_any_level():
    sound = noise(4000, 0)
    assert mel_distance(sound, sound, 8000) == 0
    assert mel_distance(sound, 0.03 * sound, 8000) == pytest.approx(0, abs=1e-3)
    assert mel_distance(torch.zeros(1), torch.zeros(900), 8000) == 0


def test_distance_forgives_slowness_and_shifts_but_not_other_sounds():
    original = melody(2000, 8000, 300, 900, 2000)
    slow, other = melody(3000, 8000, 300, 900, 2000), melody(2000, 8000, 2000, 300, 900)
    shifted = torch.cat([torch.zeros(240), original])
    near, late, far = (mel_distance(original, sound, 8000) for sound in (slow, shifted, other))
    assert near < far / 10
    assert late < far / 3
    assert mel_distance(other, original, 8000) == pytest.approx(far)
    assert mel_distance(original, original + noise(6000, 1) / 10, 8000) < mel_distance(
        original, original + noise(6000, 1), 8000
    )


def test_sounds_are_drawn_in_columns_with_the_spectrogram_below():
    figure = plot_sounds({"a": tone(400, 3000, 8000).numpy(), "b": noise(4000, 0), "silence": torch.zeros(10)}, 8000)
    figure.canvas.draw()
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "silence", "", "", ""]
    assert figure.axes[3].images[0].get_array().shape == (NUM_BANDS, 38)
    with pytest.raises(ValueError, match="got none"):
        plot_sounds({}, 8000)


@pytest.mark.slow
def test_a_classifier_tells_tones_apart_and_the_seed_makes_it():
    generator = torch.Generator().manual_seed(0)

    def sounds(count: int) -> tuple[list[Tensor], Tensor]:
        labels = torch.arange(count) % 2
        lengths = torch.randint(800, 3000, (count,), generator=generator).tolist()
        pairs = zip(lengths, labels.tolist(), strict=True)
        made = [tone((500, 900)[label], length, 8000, 0.3, length) for length, label in pairs]
        return [sound + 0.05 * torch.randn(len(sound), generator=generator) for sound in made], labels

    train, others = sounds(64), sounds(20)
    state = torch.random.get_rng_state()
    first, again = (train_classifier(*train, classes=2, rate=8000, epochs=6, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    found = classify(first, others[0])
    assert torch.equal(found, classify(again, others[0]))
    assert (found.argmax(-1) == others[1]).all()
    assert torch.allclose(found.sum(-1), torch.ones(20))


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.slow
def test_a_classifier_trained_with_noise_is_robust_to_noise(noise):
    generator, labels = torch.Generator().manual_seed(0), torch.arange(84) % 2
    lengths = torch.randint(800, 3000, (84,), generator=generator).tolist()
    clean = [tone((500, 900)[label], length, 8000, 0.3, length) for label, length in zip(labels, lengths, strict=True)]
    classifier = train_classifier(clean[:64], labels[:64], classes=2, rate=8000, epochs=20, seed=3, noise=noise)
    for amplitude in (0.1, 0.2):
        noisy = [sound + amplitude * torch.randn(len(sound), generator=generator) for sound in clean[64:]]
        right = (classify(classifier, noisy).argmax(-1) == labels[64:]).float().mean()
        assert (right >= 0.95) == noise


def test_a_sound_is_judged_the_same_alone_in_a_batch_and_at_any_level():
    torch.manual_seed(0)
    classifier = AudioClassifier(3, 8000)
    for norm in classifier.norms:
        torch.nn.init.normal_(norm.bias)  # so that what lies beyond a sound would not be zero by itself
    classifier.eval()
    waveforms = [noise(length, length).numpy() for length in (1, 700, 4000, 1230)]
    together = classify(classifier, waveforms)
    alone = torch.cat([classify(classifier, [waveform]) for waveform in waveforms])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, classify(classifier, [waveform / 3 for waveform in waveforms]), atol=1e-4)
    assert classify(classifier, []).shape == (0, 3)


def test_a_classifier_needs_a_label_in_range_for_each_sound():
    with pytest.raises(ValueError, match="2 waveforms, 1 labels"):
        train_classifier([torch.ones(9), torch.ones(9)], [0], 2, 8000)
    with pytest.raises(ValueError, match="from 0 to 1, got 0 to 2"):
        train_classifier([torch.ones(9), torch.ones(9)], [0, 2], 2, 8000)


def speech(utterances: int, seed: int) -> list[np.ndarray]:
    """Labels of which 0 to 4 come, 4 in half of all frames."""
    generator = np.random.default_rng(seed)
    return [generator.choice(5, 30 + number, p=(0.125,) * 4 + (0.5,)) for number in range(utterances)]


def test_a_perfect_code_is_always_right_and_an_unused_one_is_the_majority():
    labels = speech(10, 0)
    codes = [7 - label for label in labels]  # 0 to 2 are never used
    names = phoneme_scores.fit_map(codes, labels, 8, 41)
    assert names.tolist() == [4, 4, 4, 4, 3, 2, 1, 0]
    others = speech(5, 1)
    assert phoneme_scores.accuracy(names, [7 - label for label in others], others) == {"mean": 1, "low": 1, "high": 1}


def test_random_codes_are_right_as_often_as_the_majority():
    train, others = speech(60, 0), speech(30, 1)
    names = phoneme_scores.fit_map(phoneme_scores.random_codes(train, 8, 0), train, 8, 41)
    random = phoneme_scores.accuracy(names, phoneme_scores.random_codes(others, 8, 1), others)
    share = phoneme_scores.majority(train, others, 41)
    assert random == share
    assert share["low"] < 0.5 < share["high"]
    assert share["mean"] == pytest.approx(np.concatenate(others).tolist().count(4) / sum(map(len, others)))


def test_intervals_are_over_utterances():
    labels, codes = [np.ones(50, int)] * 4, [np.ones(50, int), np.zeros(50, int)] * 2
    result = phoneme_scores.accuracy(np.array([0, 1]), codes, labels)
    assert (result["low"], result["mean"], result["high"]) == (0, 0.5, 1)


def test_codes_and_labels_must_be_of_the_same_frames_and_in_range():
    with pytest.raises(ValueError, match="utterance 1 has 3 codes but 2 labels"):
        phoneme_scores.fit_map([np.zeros(2), np.zeros(3)], [np.zeros(2), np.zeros(2)], 4, 41)
    with pytest.raises(ValueError, match="same utterances, got 1 and 0"):
        phoneme_scores.accuracy(np.zeros(4), [np.zeros(2)], [])
    with pytest.raises(ValueError, match="labels from 0 to 40, got 0 to 41"):
        phoneme_scores.fit_map([np.zeros(2)], [np.array([0, 41])], 4, 41)
    with pytest.raises(ValueError, match="codes from 0 to 3, got 4 to 4"):
        phoneme_scores.accuracy(np.zeros(4), [np.array([4])], [np.array([0])])
    with pytest.raises(ValueError, match="a frame or more, got 1 utterances without any"):
        phoneme_scores.fit_map([np.zeros(0)], [np.zeros(0)], 4, 41)


def test_features_are_means_over_each_hop():
    sound = noise(8010, 0)
    frames = log_mel(sound, 8000).numpy()  # (101, BANDS), of 80 samples each
    whole = phoneme_scores.mel_features(sound, 8000, 320)
    assert whole.shape == (26, NUM_BANDS)
    assert np.allclose(whole[:25], frames[:100].reshape(25, 4, NUM_BANDS).mean(1), atol=1e-4)
    assert np.allclose(whole[25], frames[100], atol=1e-4)  # the last hop has but one
    assert np.allclose(
        phoneme_scores.mel_features(sound, 8000, 100)[1], (60 * frames[1] + 40 * frames[2]) / 100, atol=1e-4
    )
    assert np.allclose(phoneme_scores.mel_features(sound, 8000, 40)[::2], frames[:101], atol=1e-4)


def test_normalized_cepstra_forget_loudness_and_filters():
    mel = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    found = phoneme_scores.normalized_mfcc(mel)
    assert found.shape == (50, 13)
    assert np.allclose(found.mean(0), 0, atol=1e-5) and np.allclose(found.std(0), 1, atol=1e-4)
    assert np.allclose(
        found, phoneme_scores.normalized_mfcc(3 * mel + np.linspace(0, 1, 40, dtype=np.float32)), atol=1e-3
    )
    cosine = np.cos(np.pi * 2 * (np.arange(40) + 0.5) / 40) * np.array([[1.0], [-1.0]])  # the third basis vector
    assert np.allclose(np.abs(phoneme_scores.normalized_mfcc(cosine)[:, 2]), 1)


def test_kmeans_codes_name_what_lies_in_heaps():
    train, others = speech(10, 0), speech(5, 1)
    generator = np.random.default_rng(0)
    places = 10 * generator.normal(size=(5, 6))

    def features(labels: list[np.ndarray]) -> list[np.ndarray]:
        return [places[label] + 0.1 * generator.normal(size=(len(label), 6)) for label in labels]

    shown = features(train)
    codebook = phoneme_scores.kmeans(shown, 12, seed=1)
    assert np.array_equal(codebook, phoneme_scores.kmeans(shown, 12, seed=1))
    codes = phoneme_scores.nearest_codes(codebook, shown)
    assert 4 < phoneme_scores.code_perplexity(codes, 12) <= 12
    names = phoneme_scores.fit_map(codes, train, 12, 41)
    assert phoneme_scores.accuracy(names, phoneme_scores.nearest_codes(codebook, features(others)), others)["mean"] == 1
    with pytest.raises(ValueError, match="5 codes need as many different frames, got 1"):
        phoneme_scores.kmeans([np.zeros((9, 6))], 5)


def test_a_probe_reads_the_speaker_off_codes_only_if_they_tell():
    generator = np.random.default_rng(0)
    speakers = torch.arange(120) % 3
    telling = [generator.integers(4, size=40) + 2 * int(speaker) for speaker in speakers]
    silent = [generator.integers(8, size=40) for _ in speakers]
    for codes, least, most in ((telling, 0.95, 1), (silent, 0.1, 0.6)):
        vectors = phoneme_scores.histograms(codes, 8)
        result = phoneme_scores.speaker_probe(vectors[:80], speakers[:80], vectors[80:], speakers[80:])
        assert least <= result["mean"] <= most
        assert result["majority"] == pytest.approx(1 / 3, abs=0.05)
    features = [generator.normal(1 + int(speaker), 0.2, (20, 4)) for speaker in speakers]
    vectors = phoneme_scores.moments_over_time(features)
    assert vectors.shape == (120, 8)
    assert phoneme_scores.speaker_probe(vectors[:80], speakers[:80], vectors[80:], speakers[80:])["mean"] == 1
    said = [str(n % 2) for n in range(40)]
    probes = [
        phoneme_scores.speaker_probe(vectors[:80], speakers[:80], -vectors[80:], speakers[80:], groups)
        for groups in (None, said)
    ]
    assert probes[0]["mean"] == probes[1]["mean"] and probes[0]["low"] != probes[1]["low"]
    with pytest.raises(ValueError, match="got 80 and 79"):
        phoneme_scores.speaker_probe(vectors[:80], speakers[:79], vectors[80:], speakers[80:])
