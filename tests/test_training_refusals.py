"""What a training refuses, before it changes anything."""

import fcntl
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import PRIOR_SIZES, VQVAE_SIZES, train_config
from worldmodel import checkpoint, tensor_io
from worldmodel.config import build
from worldmodel.models.config import VQVAEConfig
from worldmodel.train.dynamics import dynamics
from worldmodel.train.spatial_prior import spatial_prior
from worldmodel.train.vqvae import vqvae
from worldmodel.train_config import TrainConfig


@pytest.mark.parametrize(("begun", "asked"), [("adamw", "muon"), ("muon", "adamw")])
@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_optimizer(begun, asked, store, tmp_path):
    def train(optimizer: str, steps: int) -> None:
        settings = replace(train_config(steps), optimizer=optimizer)
        vqvae(str(tmp_path / "run"), str(store), model=VQVAE_SIZES, train=settings, batch_size=8)

    train(begun, 4)
    with pytest.raises(ValueError, match=f"with --train.optimizer {begun}, got {asked}"):
        train(asked, 8)
    train(begun, 8)


def test_a_run_is_not_mixed_with_a_store_or_put_below_a_file(store, tmp_path):
    (tmp_path / "store.json").touch()
    with pytest.raises(ValueError, match="is a store of episodes; use another --run"):
        vqvae(str(tmp_path), str(store), model=VQVAE_SIZES, train=train_config(1))
    with pytest.raises(ValueError, match=r"store.json is not a folder, so nothing can be written"):
        vqvae(str(tmp_path / "store.json" / "run"), str(store), model=VQVAE_SIZES, train=train_config(1))


def test_the_wrong_kind_of_run_is_refused(world_run, vqvae_run, tmp_path):
    with pytest.raises(ValueError, match="must be the run of a vqvae, it is that of a dynamics"):
        checkpoint.load_vqvae(world_run)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.yaml"):
        checkpoint.load_vqvae(tmp_path)


def test_resuming_with_other_sizes_is_refused(store, vqvae_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(vqvae_run, run)
    before = (run / "config.yaml").read_text()
    with pytest.raises(
        ValueError, match="was begun with hidden_channels 16, got 24; use another --run, or the old setting"
    ):
        vqvae(
            str(run), str(store), model=replace(VQVAE_SIZES, hidden_channels=24), train=train_config(16), batch_size=8
        )
    assert (run / "config.yaml").read_text() == before


@pytest.mark.slow
def test_a_prior_does_not_go_on_with_another_vqvae(store, world_run, vqvae_run, tmp_path):
    run, other = tmp_path / "run", tmp_path / "vqvae"
    shutil.copytree(world_run, run)
    shutil.copytree(vqvae_run, other)
    tensors = tensor_io.read_tensors(other / "model.safetensors")
    tensor_io.write_tensors(other / "model.safetensors", {name: value + value.abs() for name, value in tensors.items()})
    before = (run / "config.yaml").read_text()
    with pytest.raises(ValueError, match="predicts the codes of another VQ-VAE"):
        dynamics(str(store), str(other), str(run), PRIOR_SIZES, train_config(8), batch_size=2, seq_length=6)
    assert (run / "config.yaml").read_text() == before
    dynamics(str(store), str(run / "vqvae"), str(run), PRIOR_SIZES, train_config(10), batch_size=2, seq_length=6)


def test_no_prior_is_trained_on_several_codes_per_position(store, tmp_path):
    several, out = tmp_path / "several", str(tmp_path / "run")
    vqvae(str(several), str(store), model=replace(VQVAE_SIZES, codes_per_position=2), train=train_config(1))
    for train in (dynamics, spatial_prior):
        with pytest.raises(ValueError, match="has 2 codes at each position; priors and world models need"):
            train(store=str(store), vqvae=str(several), run=out)
    assert not Path(out).exists()


@pytest.mark.slow
def test_a_prior_does_not_grow_from_one_of_another_kind(store, world_run, vqvae_run, tmp_path):
    other = tmp_path / "other"
    vqvae(str(other), str(store), model=VQVAE_SIZES, train=train_config(2), batch_size=8)
    with pytest.raises(ValueError, match="predicts the codes of another VQ-VAE"):
        dynamics(str(store), str(other), str(tmp_path / "run"), PRIOR_SIZES, train_config(1), 2, 6, init=str(world_run))
    wider = replace(PRIOR_SIZES, ar_channels=16)
    with pytest.raises(ValueError, match=r"only grow in layers; .* give model\.ar_channels 8, not 16"):
        dynamics(str(store), str(vqvae_run), str(tmp_path / "run"), wider, train_config(1), 2, 6, init=str(world_run))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(store, tmp_path):
    vqvae(str(tmp_path / "run"), str(store), model=VQVAE_SIZES, train=train_config(1), batch_size=8)
    before = (tmp_path / "run" / "train.safetensors").read_bytes()
    with open(tmp_path / "run" / "train.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is training"):
            vqvae(str(tmp_path / "run"), str(store), model=VQVAE_SIZES, train=train_config(4), batch_size=8)
    assert (tmp_path / "run" / "train.safetensors").read_bytes() == before
    vqvae(str(tmp_path / "run"), str(store), model=VQVAE_SIZES, train=train_config(4), batch_size=8)
    assert tensor_io.read_step(tmp_path / "run" / "train.safetensors") == 4


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train\.steps must be 1 or more, got 0"):
        TrainConfig(steps=0)
    with pytest.raises(ValueError, match="unknown VQVAEConfig setting 'hidden_size'"):
        build(VQVAEConfig, {"hidden_size": 3}, tmp_path)


def test_a_run_goes_on_with_other_data_batch_or_seed_only_where_that_is_allowed(store, vqvae_run, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(store, other, ignore=shutil.ignore_patterns("codes"))
    vqvae(str(run), str(store), model=VQVAE_SIZES, train=train_config(2), batch_size=4)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    longer = train_config(4)
    for changes, message in (
        ({"store": str(other)}, f"was begun with store {store}, got {other}; .*--train.allow_changes true"),
        ({"batch_size": 8}, "was begun with batch_size 4, got 8"),
        ({"train": replace(longer, seed=7)}, "was begun with train.seed 0, got 7"),
        ({"mirror": True}, "was begun with mirror False, got True"),
    ):
        with pytest.raises(ValueError, match=message):
            vqvae(
                **{
                    "run": str(run),
                    "store": str(store),
                    "model": VQVAE_SIZES,
                    "train": longer,
                    "batch_size": 4,
                    **changes,
                }
            )
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    allowed = replace(longer, seed=7, allow_changes=True)
    vqvae(str(run), str(other), model=VQVAE_SIZES, train=allowed, batch_size=8)
    assert checkpoint.read_config(run)["data"]["store"] == str(other)


def test_nothing_is_encoded_for_a_prior_that_is_refused(store, vqvae_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(store, other, ignore=shutil.ignore_patterns("codes"))
    dynamics(str(store), str(vqvae_run), str(tmp_path / "run"), PRIOR_SIZES, train_config(1), 2, seq_length=6)
    with pytest.raises(ValueError, match="was begun with store"):
        dynamics(str(other), str(vqvae_run), str(tmp_path / "run"), PRIOR_SIZES, train_config(2), 2, seq_length=6)
    assert not (other / "codes").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"optimizer": "muon"}}, "was begun with --train.optimizer adamw, got muon"),
        ({"train": {"device": "meta"}}, "there is no device 'meta' here"),
        ({"batch": 0, "train": {"allow_changes": True}}, "--batch_size must be 1 or more, got 0"),
        ({"damage": ("metrics.jsonl", b'{"a": 1}\n{"step": 2}\n')}, r"metrics.jsonl is damaged in line 1"),
        ({"damage": ("train.safetensors", b"\x10")}, r"train.safetensors is damaged"),
        ({"damage": ("config.yaml", b"kind: vqvae\nmodel: {}\ndata: {}\ntrain: x\n")}, "train must be dict, got 'x'"),
        ({"kind": "dynamics"}, "was begun with kind vqvae, got dynamics"),
    ],
)
def test_a_refused_training_changes_nothing(change, message, store, vqvae_run, tmp_path):
    run = shutil.copytree(vqvae_run, tmp_path / "run")
    if "damage" in change:
        name, data = change["damage"]
        (run / name).write_bytes(data)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train = replace(train_config(16), **change.get("train", {}))
    with pytest.raises(ValueError, match=message):
        if "kind" in change:
            dynamics(str(store), str(vqvae_run), str(run), PRIOR_SIZES, train, 2, seq_length=6)
        else:
            vqvae(str(run), str(store), model=VQVAE_SIZES, train=train, batch_size=change.get("batch", 8))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_another_process_trains_is_left_as_it_is(store, vqvae_run, tmp_path):
    run = shutil.copytree(vqvae_run, tmp_path / "run")
    before = (run / "config.yaml").read_bytes()
    with checkpoint.locked(run), pytest.raises(ValueError, match="another process is training"):
        vqvae(str(run), str(store), model=VQVAE_SIZES, train=train_config(16), batch_size=8)
    assert (run / "config.yaml").read_bytes() == before


def test_a_prior_grows_from_one_run_alone(store, vqvae_run, world_run, tmp_path):
    run = shutil.copytree(world_run, tmp_path / "run")
    with pytest.raises(ValueError, match="was begun with init"):
        dynamics(str(store), str(vqvae_run), str(run), PRIOR_SIZES, train_config(9), 2, 6, init=str(world_run))
    with pytest.raises(ValueError, match="--seq_length must be 2 or more frames"):
        dynamics(str(store), str(vqvae_run), str(tmp_path / "new"), PRIOR_SIZES, train_config(9), 2, seq_length=1)
    other = shutil.copytree(world_run, tmp_path / "other")
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("- left\n  - stay\n  - right", "- right\n  - stay\n  - left"))
    with pytest.raises(ValueError, match=r"other knows the actions \['right', 'stay', 'left'\], .*\['left', 'stay', "):
        dynamics(str(store), str(vqvae_run), str(tmp_path / "new"), PRIOR_SIZES, train_config(9), 2, init=str(other))
    assert not (tmp_path / "new").exists()


def test_weights_that_cannot_be_resumed_are_not_overwritten(store, vqvae_run, world_run, tmp_path):
    run = shutil.copytree(world_run, tmp_path / "run", ignore=shutil.ignore_patterns("train.safetensors", "*.jsonl"))
    before = (run / "model.safetensors").read_bytes()  # as train heads and release leave them
    with pytest.raises(ValueError, match=r"has weights but no train.safetensors to resume from.*use another --run"):
        dynamics(str(store), str(vqvae_run), str(run), PRIOR_SIZES, train_config(8), 2, 6)
    assert (run / "model.safetensors").read_bytes() == before


def test_more_codes_than_are_stored_are_refused(store, vqvae_run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_CODES", 8)
    with pytest.raises(ValueError, match="has 16 codes; priors and world models need a VQ-VAE with 8 at most"):
        dynamics(str(store), str(vqvae_run), str(tmp_path / "run"), PRIOR_SIZES, train_config(1), 2, 6)
    with pytest.raises(ValueError, match="must not both be 0"):
        vqvae(str(tmp_path / "run"), str(store), model=replace(VQVAE_SIZES, num_downsamples=0), train=train_config(1))
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_leaves_all_settings_open(store, vqvae_run, tmp_path):
    run, other = tmp_path / "run", shutil.copytree(vqvae_run, tmp_path / "other")
    weights = tensor_io.read_tensors(other / "model.safetensors")
    tensor_io.write_tensors(other / "model.safetensors", {name: value + value.abs() for name, value in weights.items()})
    with pytest.raises(ValueError, match="--batch_size must be a multiple of --workers, got 2 and 3"):
        dynamics(str(store), str(other), str(run), replace(PRIOR_SIZES, num_layers=2), train_config(1), 2, 6, workers=3)
    dynamics(str(store), str(vqvae_run), str(run), PRIOR_SIZES, replace(train_config(1), seed=3), 3, 6)
    assert checkpoint.load_dynamics(run).config.num_layers == PRIOR_SIZES.num_layers
    assert tensor_io.digest(run / "vqvae") == tensor_io.digest(vqvae_run)


def test_a_folder_with_a_config_of_something_else_is_left_alone(store, tmp_path):
    (tmp_path / "config.yaml").write_text("port: 80\n")
    with pytest.raises(ValueError, match=r"config\.yaml lacks 'kind'"):
        vqvae(str(tmp_path), str(store), model=VQVAE_SIZES, train=train_config(1), batch_size=4)
    assert (tmp_path / "config.yaml").read_text() == "port: 80\n"
