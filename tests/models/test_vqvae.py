"""The autoencoder: shapes, ranges, and that it learns."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from worldmodel.models.config import VQVAEConfig
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.vqvae import VQVAE, denormalize, normalize

TINY = VQVAEConfig(hidden_channels=16, residual_channels=8, quantizer=QuantizerConfig(codebook_size=16, code_dim=8))


def frames(count: int = 4, size: int = 20) -> torch.Tensor:
    """Pictures of one colour on the left and another on the right, (count, size, size, 3) uint8."""
    random = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (count, 1, 2, 3), dtype=torch.uint8, generator=random)
    return colours.expand(count, size, 2, 3).repeat_interleave(size // 2, 2)


def test_84_by_84_frames_become_21_by_21_codes_and_come_back():
    torch.manual_seed(0)
    network = VQVAE.from_config(TINY).eval()
    pictures = torch.randint(0, 256, (2, 84, 84, 3), dtype=torch.uint8)
    codes = network.encode(pictures)
    assert codes.shape == (2, 21, 21)
    assert codes.dtype == torch.int64
    assert network.decode(codes).shape == (2, 84, 84, 3)


def test_reconstruct_is_decode_after_encode():
    torch.manual_seed(0)
    network = VQVAE.from_config(TINY).eval()
    reconstruction, quantized = network.reconstruct(frames())
    assert torch.equal(quantized.codes, network.encode(frames()))
    assert torch.equal(reconstruction, network.decode(quantized.codes))


@pytest.mark.parametrize("update", ["ema", "soft_em"])
def test_several_codes_at_each_position_share_one_codebook(update):
    torch.manual_seed(0)
    quantizer = replace(TINY.quantizer, update=update)
    network = VQVAE.from_config(replace(TINY, codes_per_position=3, quantizer=quantizer)).eval()
    codes = network.encode(frames())
    assert codes.shape == (4, 3, 5, 5)
    vectors = network.encoder(normalize(frames()))  # (4, 3·8, 5, 5)
    for number, part in enumerate(vectors.split(8, 1)):
        assert torch.equal(codes[:, number], network.quantizer.encode(part))
    reconstruction, quantized = network.reconstruct(frames())
    assert torch.equal(quantized.codes, codes)
    assert torch.equal(reconstruction, network.decode(codes))
    joined = torch.cat([network.quantizer.decode(codes[:, number]) for number in range(3)], 1)
    assert torch.equal(reconstruction, denormalize(network.decoder(joined)))
    samples = network.sample_codes(frames(), 2, torch.Generator().manual_seed(0))
    assert samples.shape == (4, 2, 3, 5, 5)
    assert torch.equal(network.decode_samples(codes[:, None].repeat(1, 2, 1, 1, 1)), reconstruction)


@pytest.mark.parametrize(("kernel", "unstrided"), [(4, 0), (3, 1), (5, 2)])
def test_a_decoder_mirrors_its_encoder_for_every_kernel(kernel, unstrided):
    network = VQVAE.from_config(replace(TINY, kernel_size=kernel, num_unstrided=unstrided))
    assert network.encode(frames()).shape == (4, 5, 5)
    assert network.reconstruct(frames())[0].shape == (4, 20, 20, 3)
    transposed = [layer for layer in network.decoder if isinstance(layer, nn.ConvTranspose2d)]
    convolutions = [layer for layer in network.encoder if isinstance(layer, nn.Conv2d)][:-1]  # without the last, 1×1
    for layers, strides in ((convolutions, [2, 2] + [1] * unstrided), (transposed, [1] * unstrided + [2, 2])):
        assert [layer.stride[0] for layer in layers] == strides
        assert all(layer.kernel_size == (kernel, kernel) for layer in layers)


@pytest.mark.parametrize("quantizer", [{"update": "soft_em"}, {"kind": "gumbel"}, {"kind": "semhash"}])
def test_several_codes_are_trained_by_every_quantizer(quantizer):
    torch.manual_seed(0)
    config = replace(TINY, codes_per_position=3, quantizer=QuantizerConfig(codebook_size=16, code_dim=8, **quantizer))
    network = VQVAE.from_config(config).train()
    loss, metrics = network(frames(), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(part.grad.abs().sum() > 0 for part in network.encoder.parameters())
    assert 1 <= metrics["perplexity"] <= 16
    assert network.quantizer(network._encode_to_vectors(normalize(frames()))).counts.sum() == 4 * 3 * 25


@pytest.mark.parametrize(("kernel", "unstrided"), [(1, 0), (2, 0), (6, 0), (4, 1)])
def test_kernels_of_other_sizes_are_refused(kernel, unstrided):
    with pytest.raises(ValueError, match=r"model\.kernel_size must be .*odd"):
        VQVAEConfig(kernel_size=kernel, num_unstrided=unstrided)


def test_pixels_survive_normalizing():
    pictures = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    assert torch.equal(denormalize(normalize(pictures)), pictures)


@pytest.mark.parametrize("update", ["loss", "ema", "soft_em"])
@pytest.mark.slow
def test_it_learns_simple_pictures(update):
    torch.manual_seed(0)
    config = VQVAEConfig(
        hidden_channels=16, residual_channels=8, quantizer=QuantizerConfig(codebook_size=16, code_dim=8, update=update)
    )
    network, pictures = VQVAE.from_config(config), frames()
    optimizer, generator = torch.optim.Adam(network.parameters(), 3e-3), torch.Generator().manual_seed(0)
    errors = []
    for _ in range(200):
        loss, metrics = network(pictures, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(metrics["reconstruction_error"].item())
    assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize(
    "pictures", [torch.zeros(2, 84, 84, 3), torch.zeros(84, 84, 3, dtype=torch.uint8)], ids=["float", "rank 3"]
)
def test_frames_of_a_wrong_type_or_rank_are_refused(pictures):
    with pytest.raises(ValueError, match=r"frames must be uint8 \(B, H, W, C\), got"):
        VQVAE.from_config(TINY).encode(pictures)


@pytest.mark.parametrize("shape", [(2, 84, 84, 4), (2, 85, 84, 3)], ids=str)
def test_frames_of_a_wrong_size_are_refused(shape):
    with pytest.raises(ValueError, match="must have 3 channels and sides that are multiples of 4"):
        VQVAE.from_config(TINY).encode(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.slow
def test_a_training_step_runs_in_bfloat16_and_compiled():
    torch.manual_seed(0)
    network = VQVAE.from_config(TINY)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = torch.compile(network, backend="eager")(frames(), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_the_papers_layers_are_all_there():
    network = VQVAE.from_config(VQVAEConfig())
    strided = [layer for layer in network.encoder if getattr(layer, "stride", None) == (2, 2)]
    assert [layer.kernel_size for layer in strided] == [(4, 4), (4, 4)]
    assert sum(type(layer).__name__ == "ResidualBlock" for layer in network.encoder) == 2
    assert sum(type(layer).__name__ == "ResidualBlock" for layer in network.decoder) == 2
