"""Muon takes orthogonal steps, matrix by matrix, on the weights that it is meant for."""

import pytest
import torch
from torch import nn

from worldmodel.models.config import DynamicsConfig, VQVAEConfig
from worldmodel.models.dynamics import Dynamics
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.vqvae import VQVAE
from worldmodel.muon import Muon, _newton_schulz, _newton_schulz_gram, hidden_weights, orthogonalize


@pytest.mark.parametrize("shape", [(12, 96), (96, 12)])
def test_directions_are_nearly_orthogonal(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    directions = orthogonalize(matrices)
    values = torch.linalg.svdvals(directions)
    assert values.min() > 0.65 and values.max() < 1.25
    vectors, _, others = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(directions.flatten(1), (vectors @ others).flatten(1)).min() > 0.95


def test_a_long_matrix_takes_the_short_way_to_the_same_direction():
    x = torch.randn(2, 16, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.logspace(0, -3, 16, dtype=torch.float64)[:, None]  # as gradients are: some directions are faint
    x = x / x.norm(dim=(1, 2), keepdim=True)
    exact = _newton_schulz(x)
    torch.testing.assert_close(_newton_schulz_gram(x), exact, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(_newton_schulz_gram(x.float()).double(), exact, rtol=2e-2, atol=2e-3)


def test_a_step_is_momentum_with_look_ahead_made_orthogonal():
    weight = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, mean = weight.detach().clone(), torch.zeros(8, 36)
    for seed in range(3):
        gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1 + seed))
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient.flatten(1)
        direction = orthogonalize((0.1 * gradient.flatten(1) + 0.9 * mean)[None])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6 * direction.view_as(expected)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_one_shape_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    together = [nn.Parameter(torch.randn(8, 8, generator=generator)) for _ in range(3)]
    alone = [nn.Parameter(weight.detach().clone()) for weight in together]
    for one, other in zip(together, alone, strict=True):
        one.grad = other.grad = torch.randn(8, 8, generator=generator)
        Muon([other], lr=0.1).step()
    Muon(together, lr=0.1).step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_embeddings_outputs_positions_and_codebooks_are_left_to_adamw():
    taken, left = parted(Dynamics(DynamicsConfig()))
    assert {"patches.weight", "blocks.0.spatial.weight", "motion.convolutions.2.weight"} < taken
    assert {"embedding.weight", "position", "blocks.0.lag_bias", "wavefront.logits.weight"} < left
    taken, left = parted(VQVAE.from_config(VQVAEConfig(quantizer=QuantizerConfig(update="loss"))))
    assert {"encoder.0.weight", "decoder.0.weight"} < taken
    assert "quantizer.codebook" in left


def parted(model: nn.Module) -> tuple[set[str], set[str]]:
    """The names of the parameters that Muon takes, and of the others."""
    taken = {id(weight) for weight in hidden_weights(model)}
    names = {id(parameter) in taken: set() for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        names[id(parameter) in taken].add(name)
    return names[True], names[False]
