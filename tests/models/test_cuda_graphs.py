"""What is replayed is what would be computed. On the CPU: all but the CUDA graph itself."""

from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.models.test_dynamics import TINY, film, prior
from worldmodel.models import cuda_graphs
from worldmodel.models.cuda_graphs import CUDAGraphed
from worldmodel.models.rollout import Rollout
from worldmodel.world_model import WorldModel

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


class Pair(NamedTuple):
    """Something nested."""

    one: torch.Tensor
    more: tuple[torch.Tensor, torch.Tensor]


class Scaled(torch.nn.Module):
    """A function with a weight, which counts its calls."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0, device=device))
        self.calls = 0

    def forward(self, pair: Pair, times: float) -> tuple[Pair, torch.Tensor]:
        self.calls += 1
        return Pair(pair.one * self.weight * times, pair.more), pair.more[0] + pair.more[1]


def pair(device: str, size: int = 3, start: float = 0.0) -> Pair:
    x = torch.arange(size, dtype=torch.float32, device=device) + start
    return Pair(x, (x + 10, x + 20))


@pytest.mark.parametrize("device", DEVICES)
def test_nested_tensors_go_in_and_come_out(device):
    model = Scaled(device)
    replayed = CUDAGraphed(model, model.parameters)
    for start in (0.0, 5.0):
        result, total = replayed(pair(device, start=start), 3.0)
        expected, expected_total = model(pair(device, start=start), 3.0)
        assert isinstance(result, Pair)
        assert torch.equal(result.one, expected.one)
        assert torch.equal(result.more[1], expected.more[1])
        assert torch.equal(total, expected_total)


@pytest.mark.parametrize("device", DEVICES)
def test_neither_what_was_given_nor_what_was_returned_is_written_to_later(device):
    model = Scaled(device)
    replayed = CUDAGraphed(model, model.parameters)
    given = pair(device)
    first, _ = replayed(given, 1.0)
    kept = first.one.clone(), first.more[0].clone()
    second, _ = replayed(pair(device, start=7.0), 1.0)
    assert torch.equal(first.one, kept[0])
    assert torch.equal(first.more[0], kept[1])
    assert torch.equal(given.one, pair(device).one)
    second.more[0].zero_()
    assert torch.equal(replayed(pair(device), 1.0)[0].more[0], kept[1]), "a result is the caller's own"


@pytest.mark.parametrize("device", DEVICES)
def test_shapes_and_constants_are_told_apart_and_the_oldest_recording_goes(device):
    model = Scaled(device)
    replayed = CUDAGraphed(model, model.parameters)
    for size in (3, 4, 3, 1):
        for times in (1.0, 0.5):
            result, _ = replayed(pair(device, size), times)
            assert torch.equal(result.one, pair(device, size).one * 2 * times)
    assert len(replayed.recordings) == cuda_graphs.MAX_RECORDINGS
    assert [key[1] for key in replayed.recordings] == [1.0, 0.5, 1.0, 0.5]
    assert [key[0].one[0][0] for key in replayed.recordings] == [3, 3, 1, 1]


@pytest.mark.parametrize("device", DEVICES)
def test_a_weight_may_change_in_place_or_move(device):
    model = Scaled(device)
    replayed = CUDAGraphed(model, model.parameters)
    replayed(pair(device), 1.0)
    model.weight.data.fill_(5.0)
    assert torch.equal(replayed(pair(device), 1.0)[0].one, 5 * pair(device).one)
    (recording,) = replayed.recordings.values()
    held = model.weight.data  # or its place would be free for the next one
    model.weight.data = torch.full_like(held, 7.0)
    assert torch.equal(replayed(pair(device), 1.0)[0].one, 7 * pair(device).one)
    (again,) = replayed.recordings.values()
    assert again is not recording


@pytest.mark.parametrize("device", DEVICES)
def test_it_may_be_called_within_inference_mode_and_without(device):
    model = Scaled(device)
    replayed = CUDAGraphed(model, model.parameters)
    with torch.inference_mode():
        first, _ = replayed(pair(device), 1.0)
    second, _ = replayed(first, 1.0)
    with torch.inference_mode():
        third, _ = replayed(pair(device), 2.0)
    assert torch.equal(second.one, third.one)
    assert not second.one.requires_grad


@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_a_replayed_dream_is_the_dream(device):
    made, (codes, actions) = Rollout(prior().to(device)), (part.to(device) for part in film(8))
    replayed = CUDAGraphed(made.step, made.dynamics.parameters)
    for rows, temperature in ((2, 1.0), (1, 1.0), (2, 0.0), (2, 1.0)):
        state = other = made.start(codes[:rows, :2], actions[:rows, :1])
        for step in range(1, 7):
            uniforms = torch.rand(rows, *TINY.grid).to(device)
            state, prediction = made.step(state, actions[:rows, step], uniforms, temperature)
            other, replayed_prediction = replayed(other, actions[:rows, step], uniforms, temperature)
            assert torch.equal(state.codes, other.codes)
            assert torch.equal(state.cache_length, other.cache_length)
            assert torch.allclose(prediction.rewards, replayed_prediction.rewards, atol=1e-5)
    assert len(replayed.recordings) == 3


class Aboard(TorchDispatchMode):
    """Refuses every operation on a tensor that is not on the meta device: a graph can record none of them."""

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        tensors = [part for part in tree_leaves((arguments, named)) if isinstance(part, torch.Tensor)]
        assert all(tensor.is_meta for tensor in tensors), f"{operation} takes a tensor from elsewhere"
        return operation(*arguments, **(named or {}))


@torch.no_grad()
@pytest.mark.slow
def test_a_step_needs_nothing_from_the_cpu_and_reads_no_value():
    """The meta device has no values to read, and stands for a GPU here."""
    made, (codes, actions) = prior(), film(3)
    state = tree_map(lambda part: part.to("meta"), Rollout(made).start(codes[:, :2], actions[:, :1]))
    made = Rollout(made.to("meta"))
    given = actions[:, 1].to("meta"), torch.empty(2, *TINY.grid, device="meta")
    for temperature in (0.0, 1.0):
        made.step(state, *given, temperature)  # as before a recording: what is set up once may come from the CPU
        with Aboard():
            after, _ = made.step(state, *given, temperature)
        assert tree_map(lambda part: (part.shape, part.dtype), after) == tree_map(
            lambda part: (part.shape, part.dtype), state
        )


def test_a_world_on_the_cpu_replays_nothing_and_could(world_run, monkeypatch):
    model = WorldModel.load(world_run)
    state = model.start(torch.zeros(2, 3, 24, 24, 3, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64))
    actions, uniforms = torch.tensor([0, 2]), torch.rand(2, *model.dynamics.config.grid)
    step = model.step(state, actions, uniforms)
    assert "_graphed_step" not in vars(model)
    state, prediction = model._graphed_step(state, actions, uniforms, 1.0)
    assert torch.equal(state.latest_codes, step.codes)
    assert torch.equal(prediction.rewards, step.rewards)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_world_on_a_gpu_dreams_what_it_dreams_step_by_step(world_run):
    model = WorldModel.load(world_run, "cuda")
    state = model.start(torch.zeros(2, 3, 24, 24, 3, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64))
    actions, uniforms = torch.tensor([0, 2]), torch.rand(2, *model.dynamics.config.grid)
    step = model.step(state, actions, uniforms)
    state, _ = model.rollout.step(state, actions.cuda(), uniforms.cuda())
    assert len(model._graphed_step.recordings) == 1
    assert torch.equal(step.codes, state.latest_codes)
