"""A second VQ-VAE over the codes of a first: what its latents hold, and that they are used."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import VQVAE_SIZES, sliding_stripes, train_config
from tests.test_training import interrupt_after, lines
from worldmodel import checkpoint, tensor_io
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.experiments.global_codes.config import GlobalCodesConfig
from worldmodel.experiments.global_codes.evaluate import evaluate
from worldmodel.experiments.global_codes.measures import shuffle_latents
from worldmodel.experiments.global_codes.model import GlobalCodes
from worldmodel.experiments.global_codes.train import train
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.train.vqvae import vqvae as train_vqvae

TINY = GlobalCodesConfig(
    codebook_size=11,
    grid=(5, 6),
    code_dim=8,
    num_latents=2,
    quantizer=QuantizerConfig(codebook_size=8, code_dim=6),
    hidden_channels=8,
    residual_channels=4,
    num_residual_blocks=1,
    num_downsamples=1,
    ar_channels=8,
    ar_layers=2,
)
KINDS = ("pixelcnn", "wavefront")


def tiny(**changes) -> GlobalCodes:
    torch.manual_seed(0)
    return GlobalCodes(replace(TINY, **changes)).eval()


def pictures(count: int = 4, seed: int = 1) -> Tensor:
    """Random codes (count, 5, 6)."""
    return torch.randint(TINY.codebook_size, (count, *TINY.grid), generator=torch.Generator().manual_seed(seed))


def learn(network: GlobalCodes, codes: Tensor, steps: int, rate: float = 1e-2) -> None:
    optimizer = torch.optim.Adam(network.train().parameters(), rate)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))  # a spike late on would stay
        batch = codes[torch.randint(len(codes), (32,), generator=generator)]
        loss, _ = network(batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_latents_tell_what_cannot_be_known_without_them(kind):
    """A world of eight pictures: three bits tell them apart, and nothing else is to be known."""
    world = pictures(8)
    told, untold = tiny(net=kind), tiny(net=kind, num_latents=0)
    for network in (told, untold):
        learn(network, world, 220)
    with torch.no_grad():
        latents = told.encode(world)
        true, shuffled = (told.bits_per_code(world, part).mean() for part in (latents, shuffle_latents(latents)))
        none = untold.bits_per_code(world, latents[:, :0]).mean()
    assert len(latents.unique(dim=0)) >= 7
    assert none > 0.9 * 3 / 30, "no net can do better than to say each of the eight is as likely"
    assert true < 0.5 * none
    assert shuffled > 10 * none


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_depends_on_later_ones_through_the_latents_alone(kind):
    network, codes = tiny(net=kind), pictures(1)
    latents, order = network.encode(codes), [(i, j) for i in range(5) for j in range(6)]
    embedded = network.net.embedding(codes).detach().requires_grad_()
    network.net.embedding.forward = lambda _: embedded
    logits = network.logits(codes, latents)
    for place in order:
        (gradient,) = torch.autograd.grad(logits[0][place].sum(), embedded, retain_graph=True)
        reached = {other for other in order if gradient[0][other].abs().sum() > 0}
        assert all(other < place for other in reached), f"{place} sees {reached}"
    condition = network.condition(torch.randn(1, 12, requires_grad=True))
    (gradient,) = torch.autograd.grad(network.net(codes, condition)[0, 0, 0].sum(), network.position)
    assert gradient.abs().sum() > 0, "the first code is told the latents"


def test_training_reaches_the_encoder_through_the_codebooks():
    network = tiny().train()
    loss, metrics = network(pictures(), torch.Generator().manual_seed(0))
    loss.backward()
    assert network.embedding.weight.grad.abs().sum() > 0
    assert network.steps == 1
    assert {"bits_per_code", "aux_bits_per_code", "quantizer_loss", "perplexity_0", "perplexity_1"} == metrics.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_picture_and_another_one_another(kind):
    network = tiny(net=kind)
    latents = network.encode(pictures())
    uniforms = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))
    drawn = network.sample(latents, uniforms)
    assert drawn.shape == (4, 5, 6)
    assert torch.equal(network.sample(latents, uniforms), drawn)
    assert not torch.equal(network.sample(latents, uniforms.roll(1, 0)), drawn)
    assert torch.equal(network.sample(latents[:2], uniforms[:2]), drawn[:2]), "pictures do not mix"
    assert torch.equal(network.sample(latents, uniforms, 0.0), network.sample(latents, 1 - uniforms, 0.0))


@pytest.mark.parametrize("grid", [(21, 21), (6, 6), (4, 9)])
@pytest.mark.parametrize("latents", [0, 1, 3])
def test_shapes_fit_any_grid(grid, latents):
    network = tiny(grid=grid, num_latents=latents, num_downsamples=2)
    codes = torch.randint(TINY.codebook_size, (2, *grid))
    found = network.encode(codes)
    assert found.shape == (2, latents)
    assert network.logits(codes, found).shape == (2, *grid, TINY.codebook_size)
    assert network.bits_per_code(codes, found).shape == (2,)
    assert network.config.bits_per_image == 3 * latents


def test_dropped_codes_become_fewer_and_are_dropped_in_training_alone():
    network, codes = tiny(code_dropout=0.8, code_dropout_steps=10), pictures(64)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(network.drop_codes(codes, generator), codes)
    network.train()
    shares = [(network.drop_codes(codes, generator) != codes).float().mean().item() for _ in range(12)]
    assert shares[0] == pytest.approx(0.8 * 10 / 11, abs=0.05)
    assert shares[5] == pytest.approx(0.4 * 10 / 11, abs=0.05)
    assert shares[10] == shares[11] == 0


def test_settings_and_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"codes must be \(B, 5, 6\), got \(2, 6, 5\)"):
        tiny().encode(pictures(2).mT)
    with pytest.raises(ValueError, match=r"model\.num_latents must be 0 or more, got -1"):
        tiny(num_latents=-1)
    with pytest.raises(ValueError, match=r"model\.code_dropout must be in \[0, 1\], got 2"):
        tiny(code_dropout=2)
    with pytest.raises(ValueError, match=r"model\.num_downsamples 3 needs 8×8 codes, got \(5, 6\)"):
        tiny(num_downsamples=3)
    with pytest.raises(ValueError, match="must be pixelcnn or wavefront, got transformer"):
        tiny(net="transformer")


SIZES = replace(TINY, num_downsamples=2)


@pytest.fixture(scope="module")
def run(store, vqvae_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("global") / "run"
    train(str(store), str(vqvae_run), str(folder), SIZES, train_config(12), batch_size=8)
    return folder


@pytest.fixture(scope="module")
def without(store, vqvae_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("global") / "without"
    train(str(store), str(vqvae_run), str(folder), replace(SIZES, num_latents=0), train_config(4), batch_size=8)
    return folder


@pytest.mark.slow
def test_a_run_holds_all_that_is_needed_to_use_it(run, vqvae_run):
    network = checkpoint.load_model(run, "global_codes")
    assert network.config == replace(SIZES, codebook_size=16, grid=(6, 6), code_dim=8)
    assert tensor_io.digest(run / "vqvae") == tensor_io.digest(vqvae_run)
    assert {"bits_per_code", "bits_per_code_shuffled", "perplexity_0", "perplexity_1"} <= lines(run)[-1].keys()
    assert (run / "pictures" / "0000012.png").exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(run, store, vqvae_run, tmp_path, monkeypatch):
    def go() -> None:
        train(str(store), str(vqvae_run), str(tmp_path / "run"), SIZES, train_config(12), batch_size=8)

    with monkeypatch.context() as patched:
        interrupt_after(7, patched)
        with pytest.raises(KeyboardInterrupt):
            go()
    go()
    assert lines(tmp_path / "run") == lines(run)
    for name in ("train.safetensors", "model.safetensors"):
        mine, theirs = (tensor_io.read_tensors(folder / name) for folder in (tmp_path / "run", run))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.slow
def test_evaluate_writes_its_numbers_and_its_picture(run, without, store, tmp_path, capsys):
    evaluate(str(run), str(store), str(tmp_path), str(without), frames=16, psnr_frames=6)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (tmp_path / "reconstructions.png").exists()
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'reconstructions.png'} and scores.json\n")
    assert set(scores["bits_per_code"]) == {"true", "shuffled", "none"}
    assert scores["frames"] == 16
    frame = scores["bits_per_frame"]
    assert frame["latents"] == 6
    assert frame["first_vqvae_codes"] == 36 * 4
    assert frame["true"] == pytest.approx(36 * scores["bits_per_code"]["true"]["mean"])
    assert frame["latents_and_true"] == pytest.approx(6 + frame["true"])
    saved = scores["bits_per_frame_saved"]["none"]
    assert saved["mean"] == pytest.approx(frame["none"] - frame["true"], abs=1e-4)
    assert len(scores["latents"]["perplexity"]) == 2
    assert all(1 <= value <= 8 for value in scores["latents"]["perplexity"])
    assert set(scores["psnr"]) == {"first_vqvae", "true", "shuffled"}


@pytest.mark.slow
def test_a_run_without_latents_can_be_measured_alone(without, store, tmp_path):
    evaluate(str(without), str(store), str(tmp_path), frames=8, psnr_frames=4)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["bits_per_code"]["true"] == scores["bits_per_code"]["shuffled"]
    assert scores["bits_per_frame"]["latents"] == 0


@pytest.mark.slow
def test_runs_and_stores_of_another_kind_are_refused(run, without, store, world_run, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="must be the run of a global_codes, it is that of a dynamics"):
        evaluate(str(world_run), str(store), out)
    with pytest.raises(ValueError, match=r"must be trained with --model\.num_latents 0, it has 2 latents"):
        evaluate(str(run), str(store), out, baseline=str(run))
    other = EpisodeStore.create(tmp_path / "larger", Schema((48, 24, 3), "uint8", ("left", "stay", "right"), "stripes"))
    for seed in range(2):
        episode = sliding_stripes(seed, 4)
        other.append(replace(episode, observations=episode.observations.repeat(2, 1)))
    with pytest.raises(ValueError, match=r"was trained on grids of 6 by 6 codes, the frames of .*larger have 12 by 6"):
        evaluate(str(run), str(other.path), out)
    with pytest.raises(ValueError, match="must be 1 or more"):
        evaluate(str(run), str(store), out, frames=0)
    stranger = tmp_path / "stranger"
    shutil.copytree(without, stranger)
    shutil.rmtree(stranger / "vqvae")
    train_vqvae(
        str(stranger / "vqvae"),
        str(store),
        model=replace(VQVAE_SIZES, hidden_channels=8),
        train=train_config(1),
        batch_size=8,
    )
    with pytest.raises(ValueError, match="predicts the codes of another VQ-VAE"):
        evaluate(str(run), str(store), out, baseline=str(stranger))
    assert not (tmp_path / "out").exists()


def test_three_latents_of_512_codes_are_27_bits():
    assert math.isclose(
        tiny(num_latents=3, quantizer=QuantizerConfig(codebook_size=512, code_dim=6)).config.bits_per_image, 27
    )
