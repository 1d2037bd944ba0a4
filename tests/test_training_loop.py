"""The training loop: rates, gradients, averages and what is logged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import VQVAE_SIZES, train_config
from worldmodel import checkpoint, training
from worldmodel.train.vqvae import vqvae
from worldmodel.train_config import TrainConfig


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("precision", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_precision_is_what_was_asked_for(precision, expected, tmp_path):
    class Seeing(torch.nn.Linear):
        def forward(self, x, generator):
            result = super().forward(x)
            seen.append(result.dtype)
            return result.float().square().mean(), {}

    seen = []
    config = replace(train_config(2), precision=precision)
    training.fit(Seeing(2, 2), lambda *_: torch.ones(3, 2), lambda model, step: {}, config, make(tmp_path / "run"))
    assert set(seen) == {expected}


def test_a_loss_that_is_no_number_stops_the_run(store, tmp_path):
    with pytest.raises((FloatingPointError, ValueError), match=r"lower (train\.learning_rate|the learning rate)"):
        config = TrainConfig(steps=20, learning_rate=1e17, warmup_steps=0, evaluate_every=20, threads=1)
        vqvae(str(tmp_path / "run"), str(store), model=VQVAE_SIZES, train=config, batch_size=4)


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    config = TrainConfig(steps=100, learning_rate=1.0, warmup_steps=10, decay_fraction=0.5)
    assert [config.learning_rate_at(step) for step in (0, 9, 30, 50)] == pytest.approx([0.1, 1.0, 1.0, 1.0])
    assert config.learning_rate_at(75) == pytest.approx(0.5)
    assert config.learning_rate_at(99) == pytest.approx(0.02)


def test_the_average_keeps_its_decay_of_the_old_and_takes_the_rest_of_the_new():
    averaged, model = nn.Linear(2, 1), nn.Linear(2, 1)
    averaged.register_buffer("count", torch.zeros(1))
    model.register_buffer("count", torch.ones(1))
    expected = 0.9 * averaged.weight.detach().clone() + 0.1 * model.weight.detach()
    training._update_average(averaged, model, 0.9)
    torch.testing.assert_close(averaged.weight.detach(), expected)
    assert averaged.count == 1, "buffers are averages already"


def test_early_averages_forget_fast_and_later_ones_as_slowly_as_they_were_told(store, tmp_path, monkeypatch):
    decays = []
    whole = training._update_average
    monkeypatch.setattr(training, "_update_average", lambda *given: (decays.append(given[2]), whole(*given)))
    vqvae(str(tmp_path / "run"), str(store), model=VQVAE_SIZES, train=train_config(12), batch_size=4)
    assert decays == pytest.approx([min(0.5, (step + 1) / (step + 10)) for step in range(12)])


def test_what_was_logged_after_the_last_save_is_dropped_when_a_run_goes_on(tmp_path):
    log = training.MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, "train", loss=float(step))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    training.MetricsLog(tmp_path, 2)
    assert [row["step"] for row in checkpoint.read_metrics(tmp_path)] == [1, 2]


class Toy(nn.Module):
    """A layer whose loss is the sum of its weights, ``steepness`` times."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.layer, self.steepness = nn.Linear(3, 2), steepness

    def forward(self, batch: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.steepness * (self.layer.weight.sum() + self.layer.bias.sum()), {}


def learn(model: nn.Module, run: Path, **settings: float) -> nn.Module:
    config = TrainConfig(
        **{"steps": 4, "warmup_steps": 0, "log_every": 2, "evaluate_every": 4, "device": "cpu", **settings}
    )
    return training.fit(model, lambda *place: torch.zeros(1), lambda network, step: {}, config, make(run))


def test_a_gradient_that_is_no_number_stops_training_before_it_is_used(tmp_path):
    model = Toy(float("nan"))
    before = model.layer.weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"the gradient of step 0 is nan: lower train.learning_rate"):
        learn(model, tmp_path / "run")
    assert torch.equal(model.layer.weight, before) and not (tmp_path / "run" / "train.safetensors").exists()


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(tmp_path):
    model = Toy(100.0)
    learn(model, tmp_path / "run", grad_clip=0.5)
    total = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert float(total) == pytest.approx(0.5, rel=1e-4)


def test_weight_decay_shrinks_matrices_and_leaves_biases(tmp_path):
    model = Toy(0.0)
    weight, bias = (parameter.detach().clone() for parameter in (model.layer.weight, model.layer.bias))
    learn(model, tmp_path / "run", learning_rate=0.1, weight_decay=0.5, decay_fraction=0.0)
    torch.testing.assert_close(model.layer.weight.detach(), weight * 0.95**4)
    assert torch.equal(model.layer.bias, bias)


def test_metrics_are_logged_every_so_many_steps(tmp_path):
    learn(Toy(1.0), tmp_path / "run")
    rows = checkpoint.read_metrics(tmp_path / "run")
    assert [(row["step"], row["part"]) for row in rows] == [(2, "train"), (4, "train"), (4, "held_out")]


def test_batches_that_are_loaded_ahead_train_the_same_weights(tmp_path):
    class Fit(nn.Linear):
        def forward(self, batch, generator):
            return (super().forward(batch) - 1).square().mean(), {}

    def train(name: str, data_workers: int) -> nn.Module:
        torch.manual_seed(0)
        config = replace(train_config(6), data_workers=data_workers)
        batches = lambda step, rank, world_size: torch.full((3, 2), float(step))  # noqa: E731
        return training.fit(Fit(2, 2), batches, lambda model, step: {}, config, make(tmp_path / name))

    torch.testing.assert_close(train("ahead", 2).state_dict(), train("alone", 0).state_dict(), rtol=0, atol=0)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    with pytest.raises(FloatingPointError, match=r"weights are not finite after step 4: lower train.learning_rate"):
        learn(Toy(1.0), tmp_path / "run", learning_rate=1e17, weight_decay=1e17, decay_fraction=0.0)
    assert not (tmp_path / "run" / "train.safetensors").exists()
