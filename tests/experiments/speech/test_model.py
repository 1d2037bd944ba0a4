"""The speech VQ-VAE: its encoder's input, its decoder's condition, its losses and its samples."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmodel.experiments.speech.codec import mean_bits
from worldmodel.experiments.speech.config import SpeechConfig
from worldmodel.experiments.speech.data import audio
from worldmodel.experiments.speech.model import (
    MIN_CONDITION_HOP,
    SpeechBatch,
    SpeechVQVAE,
    jitter,
    log_spectra,
    mu_law_to_float,
)
from worldmodel.models.autoregressive.sampling import sample_categorical
from worldmodel.models.layers import strided_convolutions
from worldmodel.models.quantizers.config import QuantizerConfig

SMALL = SpeechConfig(
    num_speakers=2,
    strides=(2, 2, 4),
    hidden_channels=8,
    residual_channels=8,
    num_residual_blocks=1,
    quantizer=QuantizerConfig(codebook_size=16, code_dim=8),
    condition_channels=8,
    decoder_channels=8,
    decoder_layers=3,
    dilation_cycle=3,
    skip_channels=8,
)


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
    assert torch.nn.Sequential(*strided_convolutions(1, 1, 4, strides))(torch.zeros(1, 1, 3 * hop)).shape == (1, 4, 3)
    small = SpeechVQVAE(
        SpeechConfig(
            strides=strides,
            hidden_channels=4,
            residual_channels=4,
            condition_channels=4,
            decoder_channels=4,
            decoder_layers=2,
            skip_channels=4,
        )
    )
    codes = small.encode(torch.zeros(1, 2 * hop, dtype=torch.uint8))
    condition = small.condition_on_codes(2 * hop, torch.tensor([0]), codes)
    assert codes.shape == (1, 2) and condition.shape[1] * (2 * hop // condition.shape[1]) == 2 * hop
    assert hop < MIN_CONDITION_HOP or 2 * hop // condition.shape[1] >= MIN_CONDITION_HOP


def test_silence_after_a_recording_counts_for_nothing(network):
    first = batch()
    changed = first.samples.clone()
    changed[1, 40:] = 7  # of 32
    codes = network.encode(first.samples)  # the same, so that only the samples to predict differ
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
def test_cached_sampling_equals_full_passes(network, temperature):
    first = batch(32)
    codes, uniforms = network.encode(first.samples), torch.rand(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        condition = network.condition_on_codes(32, first.speakers, codes)
        samples = network.net.sample(condition, uniforms, temperature)
        logits = network.net(samples, condition)
    assert torch.equal(sample_categorical(logits, uniforms, temperature), samples)


def test_everything_learns(network):
    network.train()
    loss, _ = network(batch(), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in network.encoder.parameters())
    dropped = SpeechVQVAE(replace(SMALL, code_dropout=0.99)).train()
    dropped(batch(), torch.Generator().manual_seed(0))[0].backward()
    assert dropped.nothing.grad.abs().sum() > 0


@pytest.mark.parametrize("strides", [(2, 2, 4), (2,) * 7, (5, *(2,) * 7), (3, 2, 4)])
def test_a_spectrum_is_centered_on_its_codes(strides):
    torch.manual_seed(0)
    net = SpeechVQVAE(replace(SMALL, strides=strides, encoder_input="spectrum", aux_weight=0.5)).eval()
    hop = net.config.hop
    samples = torch.full((1, 9 * hop), audio.SILENCE, dtype=torch.uint8)
    quiet = net.encode_to_vectors(samples.long())
    samples[:, 4 * hop : 5 * hop] = torch.randint(256, (hop,), dtype=torch.uint8)
    changed = (net.encode_to_vectors(samples.long()) - quiet).abs().sum((0, 1))
    assert quiet.shape == (1, 8, 9) and int(changed.argmax()) in (3, 4, 5)
    assert changed[0] == changed[8] == 0
    loss, metrics = net(SpeechBatch(samples, torch.tensor([9 * hop]), torch.tensor([0])))
    assert torch.isfinite(loss) and metrics["spectral_error"] > 0


def test_an_encoder_of_log_mel_hears_no_constant_filter():
    torch.manual_seed(0)
    sizes = replace(SMALL, strides=(2, 2, 5, 4), encoder_input="mel", sample_rate=4000, aux_weight=0.5)
    net = SpeechVQVAE(sizes).eval()
    noise = 0.05 * np.random.default_rng(0).normal(size=(1, 80 * 12))
    soft, loud = (net.spectra(torch.from_numpy(audio.mu_law_encode(gain * noise)).long()) for gain in (1, 4))
    assert soft.shape == (1, 24, 40)  # every 10 ms
    assert (loud - soft).median() == pytest.approx(math.log(4), abs=0.02)
    samples = torch.from_numpy(audio.mu_law_encode(noise))
    louder = torch.from_numpy(audio.mu_law_encode(4 * noise))
    vectors, others = (net.encode_to_vectors(part.long()) for part in (samples, louder))
    assert (others - vectors).abs().mean() < 0.1 * vectors.abs().mean()
    spectral = SpeechVQVAE(replace(sizes, encoder_input="spectrum", sample_rate=0)).eval()
    vectors_of_spectra, others = (spectral.encode_to_vectors(part.long()) for part in (samples, louder))
    assert (others - vectors_of_spectra).abs().mean() > 0.3 * vectors_of_spectra.abs().mean(), "it tells something"
    loss, metrics = net(SpeechBatch(samples, torch.tensor([960]), torch.tensor([0])))
    assert torch.isfinite(loss) and metrics["spectral_error"] > 0 and net.encode(samples).shape == (1, 12)
    with pytest.raises(ValueError, match="needs a multiple of 160 samples per code, 10 ms, got 80"):
        SpeechVQVAE(replace(sizes, sample_rate=16_000))
    with pytest.raises(ValueError, match="mel needs --rate 4000 or more, got 0"):
        SpeechVQVAE(replace(sizes, sample_rate=0))


def test_the_mean_of_log_mel_is_not_of_the_padding():
    torch.manual_seed(0)
    net = SpeechVQVAE(replace(SMALL, strides=(2, 2, 5, 4), encoder_input="mel", sample_rate=4000)).eval()
    noise = torch.from_numpy(audio.mu_law_encode(0.05 * np.random.default_rng(0).normal(size=(1, 800)))).long()
    padded = torch.nn.functional.pad(noise, (0, 800), value=audio.SILENCE)
    alone, among = net.encode_to_vectors(noise), net.encode_to_vectors(padded, torch.tensor([800]))
    assert torch.allclose(among[:, :, :8], alone[:, :, :8], atol=1e-3)
    assert not torch.allclose(net.encode_to_vectors(padded)[:, :, :8], alone[:, :, :8], atol=1e-1)


def test_a_tone_is_loudest_in_the_band_of_its_frequency():
    time = np.arange(4096) / 8000
    tone = torch.from_numpy(audio.mu_law_encode(0.02 * np.sin(2 * np.pi * 1000 * time)))[None]
    found = log_spectra(tone.long(), 64)
    assert found.shape == (1, 64, 65)
    assert int(found[0, 32].argmax()) == 1000 / (8000 / 128)


def test_at_the_beginning_nothing_is_quantized():
    torch.manual_seed(0)
    net = SpeechVQVAE(replace(SMALL, quantizer_warmup_steps=2)).train()
    before = net.quantizer.codebook.clone()
    for step in range(3):
        _, metrics = net(batch(), torch.Generator().manual_seed(step))
        assert ("perplexity" in metrics) == (step == 2)
        assert torch.equal(net.quantizer.codebook, before) == (step < 2)


def test_a_wavenet_waits_until_the_codes_mean_something():
    torch.manual_seed(0)
    net = SpeechVQVAE(replace(SMALL, aux_weight=0.5, aux_only_steps=2)).train()
    for step in range(3):
        net.zero_grad()
        loss, metrics = net(batch(), torch.Generator().manual_seed(step))
        loss.backward()
        assert ("bits_per_sample" in metrics) == (step == 2)
        assert (net.net.logits.weight.grad is None) == (step < 2)
        assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in net.encoder.parameters())
    with pytest.raises(ValueError, match="give it a weight"):
        replace(SMALL, aux_only_steps=2)


def test_the_first_codes_differ_where_the_sound_does():
    torch.manual_seed(0)
    deep = SpeechVQVAE(SpeechConfig())
    noise = torch.randint(256, (1, 4096), dtype=torch.uint8)
    found = deep.encoder(mu_law_to_float(noise.long()))
    assert found.std(-1).mean() > 0.1  # 0.001 if they begin as PyTorch begins convolutions


def test_jitter_takes_neighbours_as_often_as_it_says():
    vectors = torch.arange(10_000.0).view(1, 1, -1)
    moved = jitter(vectors, 0.2, torch.Generator().manual_seed(0)) - vectors
    assert set(moved.unique().tolist()) == {-1, 0, 1}
    assert float((moved != 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float((moved > 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(jitter(vectors, 0.0), vectors)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strides": ()}, "strides"),
        ({"strides": (1, 2)}, "strides"),
        ({"jitter": 1.5}, "jitter"),
        ({"code_dropout": -1}, "code_dropout"),
    ],
)
def test_a_wrong_setting_is_named(wrong, message):
    with pytest.raises(ValueError, match=f"model.{message} must be"):
        SpeechConfig(**wrong)


def test_a_line_that_is_no_multiple_of_the_hop_is_refused(network):
    with pytest.raises(ValueError, match="65 samples must be a multiple of the 16"):
        network.encode(torch.zeros(1, 65, dtype=torch.uint8))
