"""The experiment that compares quantizers: fair, resumable, and its numbers worked by hand."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import VQVAE_SIZES, train_config
from worldmodel import checkpoint
from worldmodel.experiments.quantizers.compare import compare_quantizers, list_variants
from worldmodel.experiments.quantizers.runs import build_initial_vqvae, reconstruct_from_samples
from worldmodel.experiments.quantizers.table import Variant, format_table, plot_scores, summarize
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.vqvae import denormalize, normalize
from worldmodel.renamed import DATA, MODELS, QUANTIZER, TRAIN, renamed

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {"model": VQVAE_SIZES, "batch_size": 4, "seeds": 2}
SOME = {"quantizers": "ema,soft_em_5,gumbel,semhash", "starts": "small"}


def saves(folder: Path) -> dict[str, int]:
    """When each run was last saved."""
    return {str(path.parent): path.stat().st_mtime_ns for path in folder.rglob("train.safetensors")}


@pytest.fixture(scope="module")
def experiment(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("experiment")
    compare_quantizers(str(out), str(store), train=train_config(4), **SOME, **SETTINGS)
    return out


@pytest.mark.slow
def test_every_run_is_a_run_folder_and_every_row_has_its_spread(experiment):
    rows = json.loads((experiment / "quantizers.json").read_text())
    assert [(row["quantizer"], row["start"]) for row in rows] == [
        ("ema", "small"),
        ("soft_em_5", "small"),
        ("gumbel", ""),
        ("semhash", ""),
    ]
    for row in rows:
        errors = [run["nmse"] for run in row["runs"]]
        assert len(errors) == 2 and row["nmse"]["mean"] == pytest.approx(sum(errors) / 2)
        for run in row["runs"]:
            network = checkpoint.load_vqvae(experiment / run["run"])
            assert network.quantizer.config.codebook_size == 16 and network.quantizer.config.code_dim == 8
    assert checkpoint.load_vqvae(experiment / rows[1]["runs"][0]["run"]).quantizer.config.num_samples == 5
    assert [("nmse_drawn" in row) for row in rows] == [False, True, False, False]
    assert len((experiment / "quantizers.txt").read_text().splitlines()) == 5
    assert (experiment / "quantizers.png").exists() and (experiment / "reconstructions.png").exists()


@pytest.mark.slow
def test_what_is_finished_is_not_repeated_and_what_is_missing_comes_out_the_same(experiment, store):
    before, results = saves(experiment), (experiment / "quantizers.json").read_text()
    lost = experiment / "16-gumbel/seed-1"
    for path in [*lost.glob("*.safetensors"), lost / "metrics.jsonl"]:
        path.unlink()
    compare_quantizers(str(experiment), str(store), train=train_config(4), **SOME, **SETTINGS)
    after = saves(experiment)
    assert {run for run in before if after[run] != before[run]} == {str(lost)}
    assert (experiment / "quantizers.json").read_text() == results


@pytest.mark.slow
def test_several_processes_find_what_one_does(experiment, store, tmp_path):
    compare_quantizers(
        str(tmp_path / "q"), str(store), train=train_config(4), quantizers="ema", starts="small", parallel=2, **SETTINGS
    )
    mine, theirs = (json.loads((folder / "quantizers.json").read_text())[0] for folder in (tmp_path / "q", experiment))
    assert mine == theirs


@pytest.mark.slow
def test_an_experiment_with_other_settings_needs_another_folder(experiment, store):
    with pytest.raises(ValueError, match=r"was begun with train\.learning_rate 0\.0004, got 0\.1; use another --out"):
        compare_quantizers(
            str(experiment), str(store), train=replace(train_config(4), learning_rate=0.1), **SOME, **SETTINGS
        )
    with pytest.raises(ValueError, match=r"was begun with data\.batch_size 4, got 8"):
        compare_quantizers(str(experiment), str(store), train=train_config(4), **SOME, **{**SETTINGS, "batch_size": 8})
    with pytest.raises(ValueError, match=r"was begun with train\.steps 4, got 6"):
        compare_quantizers(str(experiment), str(store), train=train_config(6), **SOME, **SETTINGS)


@pytest.mark.slow
def test_an_experiment_of_which_no_run_has_weights_begins_anew(store, tmp_path):
    (tmp_path / "config.yaml").write_text("data:\n  batch_size: 7\n")
    settings = {**SETTINGS, "seeds": 1, "quantizers": "ema", "starts": "small"}
    compare_quantizers(str(tmp_path), str(store), train=train_config(1), **settings)
    with pytest.raises(ValueError, match=r"was begun with data\.batch_size 4, got 5"):
        compare_quantizers(str(tmp_path), str(store), train=train_config(1), **{**settings, "batch_size": 5})


@pytest.mark.slow
def test_sigterm_ends_all_runs_at_once(store, tmp_path):
    flags = (
        f"--store {store} --out {tmp_path / 'q'} --quantizers ema --starts small --seeds 2 --parallel 2 --batch_size 4"
    )
    flags += " --model.hidden_channels 16 --model.residual_channels 8 --train.steps 1000000"
    command = [sys.executable, "-m", "worldmodel.experiments.quantizers", *flags.split()]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "q").rglob("metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)  # which waits until the workers have closed the pipe, too
    assert process.returncode == 143, errors


@pytest.mark.slow
def test_an_experiment_with_the_old_names_of_its_settings_goes_on(experiment, store):
    def with_old_names(values: dict, names: dict[str, str]) -> dict:
        return renamed(values, {new: old for old, new in names.items()})

    path = experiment / "config.yaml"
    text = path.read_text()
    values = yaml.safe_load(text)
    values["model"]["quantizer"] = with_old_names(values["model"]["quantizer"], QUANTIZER)
    values["model"] = with_old_names(values["model"], MODELS["vqvae"])
    values["train"] = with_old_names(values["train"], TRAIN)
    values["data"] = with_old_names(values["data"], {**DATA, "learnt": "num_train", "held_out": "num_held_out"})
    values |= {name: with_old_names(values[name], QUANTIZER) for name in ("gumbel", "semhash")}
    path.write_text(yaml.safe_dump(values))
    before = saves(experiment)
    compare_quantizers(str(experiment), str(store), train=train_config(4), **SOME, **SETTINGS)
    assert path.read_text() == text and saves(experiment) == before


def test_mistakes_are_said_before_anything_is_trained(store, tmp_path):
    out = tmp_path / "out"
    for settings, message in (
        ({"quantizers": "ema,gumble"}, "unknown quantizer 'gumble': .* did you mean 'gumbel'"),
        ({"starts": "kmean"}, "unknown start 'kmean': .* did you mean 'kmeans'"),
        ({"codes": "512,x"}, "--codes must be numbers such as 512,4096, got 512,x"),
        ({"codes": "500"}, "must be a power of two for kind semhash, got 500; use 512"),
        ({"seeds": 0}, "--seeds and --parallel must be 1 or more, got 0 and 1"),
        ({"gumbel": QuantizerConfig(kind="semhash")}, r"--gumbel\.kind must be gumbel, got semhash"),
        ({"model": replace(VQVAE_SIZES, quantizer=QuantizerConfig(kind="gumbel"))}, r"quantizer\.kind must be nearest"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_quantizers(str(out), str(store), **settings)
    with pytest.raises(ValueError, match="give either --store or --images"):
        compare_quantizers(str(out))
    with pytest.raises(ValueError, match="multiples of 32"):
        compare_quantizers(str(out), str(store), **SOME, model=replace(VQVAE_SIZES, num_downsamples=5))
    assert not out.exists()


def test_all_quantizers_of_a_seed_begin_with_the_same_weights():
    kinds = [{}, {"update": "loss", "codebook_size": 32}, {"kind": "gumbel"}, {"kind": "semhash"}]
    networks = [
        build_initial_vqvae(replace(VQVAE_SIZES, quantizer=QuantizerConfig(code_dim=8, **kind)), seed=3)
        for kind in kinds
    ]
    for part in ("encoder", "decoder"):
        first, *others = (getattr(network, part).state_dict() for network in networks)
        assert all(torch.equal(other[name], first[name]) for other in others for name in first)
    other = build_initial_vqvae(VQVAE_SIZES, seed=4)
    assert not torch.equal(other.encoder[0].weight, networks[0].encoder[0].weight)


def test_what_soft_em_draws_is_decoded_as_the_mean_of_its_codes():
    settings = QuantizerConfig(codebook_size=16, code_dim=8, update="soft_em", num_samples=4)
    network = build_initial_vqvae(replace(VQVAE_SIZES, quantizer=settings), seed=0).eval()
    frames = torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8)
    network.quantizer.codebook.mul_(1e3)  # so far apart that the nearest is always drawn
    assert torch.equal(reconstruct_from_samples(network, frames), network.decode(network.encode(frames)))
    network.quantizer.codebook.mul_(1e-6)  # so near that all are drawn alike
    z = network.encoder(normalize(frames))
    drawn = network.quantizer.sample_codes(z, 4, torch.Generator().manual_seed(0))
    vectors = network.quantizer.codebook[drawn].mean(1).movedim(-1, 1)
    assert torch.equal(reconstruct_from_samples(network, frames), denormalize(network.decoder(vectors)))


def test_codebooks_have_starts_and_the_others_have_none():
    found = list_variants("ema,gumbel", "random,kmeans", "8,16")
    assert found[:3] == [Variant(8, "ema", "random"), Variant(8, "ema", "kmeans"), Variant(8, "gumbel", "")]
    assert len(found) == 6


def test_the_table_is_of_moments_and_of_differences_seed_by_seed():
    def runs(*errors: float) -> list[dict]:
        return [{"nmse": e, "psnr": 20.0, "perplexity": 10 * e, "codes_used": 4.0, "nmse_train": e} for e in errors]

    found = {
        Variant(8, "ema", "small"): runs(1.0, 2.0, 6.0),
        Variant(8, "ema", "kmeans"): runs(1.0, 1.0, 1.0),
        Variant(8, "soft_em_5", "kmeans"): runs(0.5, 0.75, 1.5),
        Variant(8, "gumbel", ""): runs(0.0, 1.0, 6.0),
    }
    rows = summarize(found)
    assert rows[0]["nmse"] == {"mean": 3.0, "deviation": pytest.approx(7**0.5), "least": 1.0, "most": 6.0}
    assert "nmse_minus_ema" not in rows[0] and "nmse_minus_ema" not in rows[1]
    assert rows[2]["nmse_minus_ema"]["mean"] == pytest.approx(-0.25 / 3) and rows[2]["nmse_minus_ema"]["num_lower"] == 2
    assert rows[3]["nmse_minus_ema"]["start"] == "small" and rows[3]["nmse_minus_ema"]["mean"] == pytest.approx(-2 / 3)
    lines = format_table(rows).splitlines()
    assert "3.0000 ± 2.6458  1.0000  6.0000" in lines[1]
    assert "-0.0833" in lines[3] and lines[3].endswith("2 of 3")
    assert len(plot_scores(rows).axes) == 2
    reach = rows[3]["nmse_minus_ema"]["high"] - rows[3]["nmse_minus_ema"]["mean"]  # of -1, -1, 0; t of 2 degrees: 4.303
    assert reach == pytest.approx(4.3027 / 3, rel=1e-4)
    del found[Variant(8, "gumbel", "")][1]["nmse_train"]  # it logged less often
    assert "nmse_train" not in summarize(found)[3] and "nmse_train" in summarize(found)[0]
