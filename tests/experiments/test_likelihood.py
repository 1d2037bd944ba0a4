"""The autoencoders with a likelihood, and the program that trains and evaluates them."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import train_config
from tests.experiments.test_elbo import LOG_2, TINY, pictures, seeded, trained
from worldmodel import checkpoint, tensor_io
from worldmodel.experiments.likelihood.autoencoders import build_autoencoder
from worldmodel.experiments.likelihood.bits_per_dim import unconditional_bits_per_code
from worldmodel.experiments.likelihood.config import AutoencoderConfig
from worldmodel.experiments.likelihood.evaluate import evaluate
from worldmodel.experiments.likelihood.train import train
from worldmodel.images.dataset import open_images
from worldmodel.images.generator import ImageGenerator
from worldmodel.models.config import SpatialPriorConfig
from worldmodel.models.spatial_prior import CodeBatch, SpatialPrior
from worldmodel.train.spatial_prior import spatial_prior

# ---- all


@pytest.mark.parametrize(
    "kind, likelihood", [("vqvae", "logistic"), ("vae", "logistic"), ("vimco", "logistic"), ("vqvae", "softmax")]
)
@pytest.mark.slow
def test_each_kind_learns(kind, likelihood):
    shown = pictures(16, 8, kinds=4)
    first, last = (trained(replace(TINY, kind=kind, likelihood=likelihood), shown, steps) for steps in (1, 60))
    with torch.no_grad():
        before, after = (
            model.bound_metrics(shown, model.bound(shown, 4, seeded()))["bits_per_dim"] for model in (first, last)
        )
    assert after < before - 0.5
    assert last.reconstruct(shown)[0].shape == shown.shape


@pytest.mark.parametrize("kind", ["vqvae", "vae", "vimco"])
def test_the_loss_of_a_kind_is_its_bound(kind):
    torch.manual_seed(0)
    model, shown = build_autoencoder(replace(TINY, kind=kind)).eval(), pictures()
    loss, metrics = model(shown, seeded())
    expected = metrics["bits_per_dim"] * LOG_2
    if kind == "vqvae":  # whose rate is a constant that is not trained
        expected = metrics["distortion"] * LOG_2 + metrics["quantizer_loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    bound = model.bound(shown, 1 if kind == "vae" else 4, seeded())
    assert model.bound_metrics(shown, bound)["distortion"].item() == pytest.approx(
        metrics["distortion"].item(), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["vqvae", "vae", "vimco"])
@pytest.mark.slow
def test_a_training_step_runs_in_bfloat16_and_compiled(kind):
    torch.manual_seed(0)
    model = build_autoencoder(replace(TINY, kind=kind))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = torch.compile(model, backend="eager")(pictures(), seeded())
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_latents": 0}, "latents must be 1 or more"),
        ({"kind": "vimco", "num_samples": 1}, "samples must be 2 or more"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**settings)


# ---- the program


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.npz"
    np.savez(path, images=pictures(40, 8, kinds=4).numpy())
    return path


def learn(data: Path, run: Path, kind: str, steps: int = 6, **more) -> None:
    train(
        str(data),
        str(run),
        model=replace(TINY, kind=kind),
        train=train_config(steps),
        batch_size=4,
        eval_images=3,
        **more,
    )


@pytest.mark.parametrize("kind", ["vqvae", "vae", "vimco"])
@pytest.mark.slow
def test_a_kind_is_trained_and_measured(kind, data, tmp_path, capsys):
    run = tmp_path / "run"
    learn(data, run, kind, flip=True)
    learn(data, run, kind, 8, flip=True)
    assert tensor_io.read_step(run / "train.safetensors") == 8
    assert (run / "pictures" / "0000008.png").exists()
    capsys.readouterr()
    evaluate(str(run), num_samples=5, probes=2 if kind == "vqvae" else 0)
    scores = json.loads((run / "likelihood.json").read_text())
    assert json.loads(capsys.readouterr().out.split("wrote")[0]) == scores
    assert {name: scores["model"][name] for name in ("kind", "steps", "num_images", "likelihood")} == {
        "kind": kind, "steps": 8, "num_images": 4, "likelihood": "logistic",
    }  # fmt: skip
    first, second = scores["bounds"]
    parts = [first[name]["mean"] for name in ("distortion", "rate", "bits_per_dim")]
    assert parts[0] + parts[1] == pytest.approx(parts[2])
    assert first["bits_per_dim"]["low"] <= parts[2] <= first["bits_per_dim"]["high"]
    if kind == "vqvae":
        assert parts[1] == pytest.approx(12 * math.log2(3) / 192)
        assert scores["codes"] == {"codes_per_image": 12, "codebook_size": 3, "code_dim": 4}
        assert second["prior"] == "unigram"
        assert scores["one_latent"]["bits"]["mean"] >= 0
    else:
        assert (first["num_samples"], second["num_samples"]) == (1, 5)
        assert second["bits_per_dim"]["mean"] <= parts[2]
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"distortion", "rate", "bits_per_dim"} <= logged.keys()


@pytest.fixture(scope="module")
def with_prior(data, tmp_path_factory) -> tuple[Path, Path]:
    """A VQ-VAE's run, and that of a prior over its codes."""
    run, prior = (tmp_path_factory.mktemp("runs") / name for name in ("vqvae", "prior"))
    learn(data, run, "vqvae", 30)
    sizes = SpatialPriorConfig(hidden_channels=16, num_layers=2)
    spatial_prior(str(run), str(prior), images=str(data), model=sizes, train=train_config(30), batch_size=8)
    return run, prior


@pytest.mark.slow
def test_a_learned_prior_bounds_the_likelihood_too(with_prior, data, tmp_path):
    run, prior = with_prior
    evaluate(str(run), str(prior), out=str(tmp_path / "scores.json"))
    uniform, _, learned = json.loads((tmp_path / "scores.json").read_text())["bounds"]
    assert learned["distortion"] == uniform["distortion"]
    network, net = checkpoint.load_vqvae(run), checkpoint.load_spatial_prior(prior)
    shown = torch.from_numpy(open_images(data).held_out.read(np.arange(4)))
    bits = net.bits_per_code(CodeBatch(network.encode(shown), torch.zeros(4, dtype=torch.int64))).mean().item()
    assert learned["rate"]["mean"] == pytest.approx(bits * 12 / 192, rel=1e-5)
    assert ImageGenerator.load(prior).generate(torch.zeros(2, dtype=torch.int64)).shape == (2, 8, 8, 3)


def test_a_prior_that_knows_classes_counts_as_their_mixture():
    torch.manual_seed(0)
    net = SpatialPrior(
        SpatialPriorConfig(codebook_size=3, grid=(2, 1), num_classes=2, hidden_channels=8, num_layers=2, code_dim=4)
    ).eval()
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))[:, :, None]  # (9, 2, 1)
    bits = unconditional_bits_per_code(net, every) * 2
    assert (-bits * LOG_2).exp().sum().item() == pytest.approx(1)
    each = torch.stack([net.bits_per_code(CodeBatch(every, torch.full((9,), label))) * 2 for label in range(2)])
    assert torch.allclose(bits, -(2**-each).mean(0).log2().double(), atol=1e-5)


@pytest.mark.slow
def test_soft_targets_are_of_the_same_grid(with_prior, data):
    network = checkpoint.load_vqvae(with_prior[0])
    shown = torch.from_numpy(open_images(data).held_out.read(np.arange(4)))
    network.quantizer.codebook *= 1000  # so that the nearest code is as good as sure
    network.quantizer.codebook[1:] += torch.arange(1, 3)[:, None] * 1e4
    drawn = network.sample_codes(shown, 2, seeded())
    assert drawn.shape == (4, 2, 6, 2)
    assert torch.equal(drawn[:, 0], network.encode(shown)) and torch.equal(drawn[:, 1], drawn[:, 0])


@pytest.mark.slow
def test_a_prior_over_other_codes_is_refused(with_prior, data, tmp_path):
    learn(data, tmp_path / "other", "vqvae")
    with pytest.raises(ValueError, match="predicts the codes of another VQ-VAE"):
        evaluate(str(tmp_path / "other"), str(with_prior[1]))


@pytest.mark.slow
def test_what_does_not_fit_together_is_named(data, tmp_path):
    run = tmp_path / "run"
    learn(data, run, "vae")
    with pytest.raises(ValueError, match="was begun with kind vae, got vqvae"):
        learn(data, run, "vqvae")
    with pytest.raises(ValueError, match=r"--prior and --probes are for a vqvae, .* is a vae"):
        evaluate(str(run), probes=1)
    with pytest.raises(ValueError, match="--num_samples must be 1 or more"):
        evaluate(str(run), num_samples=0)
    with pytest.raises(ValueError, match="must be the run of a vqvae, it is that of an autoencoder without codes"):
        checkpoint.load_vqvae(run)
    (run / "train.safetensors").unlink()  # only the weights are kept
    evaluate(str(run), num_images=2, num_samples=1)
    assert json.loads((run / "likelihood.json").read_text())["model"]["steps"] == 6
