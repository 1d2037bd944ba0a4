"""Comparison with other implementations: other samplers of a frame of codes, and another quantizer."""

from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from worldmodel.benchmarks.dream import Dreams
from worldmodel.benchmarks.limits import count_flops
from worldmodel.benchmarks.settings import Settings, count_parameters
from worldmodel.benchmarks.timing import MISSING_PACKAGE, Contestant, Section, race
from worldmodel.models.autoregressive.pixelcnn import PixelCNN
from worldmodel.models.autoregressive.sampling import sample_categorical
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.autoregressive.wavenet import WaveNet
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.nearest import VectorQuantizer

MAX_SLOW_ROUNDS = 3  # of contestants that take seconds
GPT_SIZES = ((10, 1), (6, 1), (10, 6))  # layers and context frames; IRIS has ten layers of four heads
GPT_HEADS = 4
GPT_FLOP_CODES = 4  # codes of a frame over which FLOPs are counted
NUM_FRAMES = 64  # per call of a quantizer


class GPTSampler:
    """A GPT-2 with random weights that samples frames as token sequences, with a key-value cache.

    A frame is its codes followed by the action taken there (IRIS, Micheli et al. 2023). The cache already holds the
    context frames.

    Args:
        size: approximate total number of parameters.
        codes: codebook size K.
        frame: number of codes per frame.
        actions: number of actions.
        layers: number of layers.
        context: number of frames before the sampled one; also limits the positions.
        dtype: data type of weights and activations.

    Raises:
        ImportError: if transformers is not installed.
    """

    def __init__(
        self,
        size: int,
        codes: int,
        frame: int,
        actions: int,
        layers: int,
        context: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

        vocabulary, positions = codes + actions, (context + 1) * (frame + 1)

        def count(width: int) -> int:
            return (vocabulary + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width

        widths = range(GPT_HEADS, 64 * GPT_HEADS * GPT_HEADS, GPT_HEADS)
        self.width = min(widths, key=lambda width: abs(count(width) - size))
        sizes: dict[str, Any] = {"n_positions": positions, "n_embd": self.width, "n_layer": layers, "n_head": GPT_HEADS}
        config = GPT2Config(vocab_size=vocabulary, **sizes, bos_token_id=None, eos_token_id=None)
        self.network = cast(nn.Module, GPT2LMHeadModel(config)).to(device, dtype).eval()
        self.codes, self.action = codes, codes
        self.parameters = sum(p.numel() for p in self.network.parameters())
        self.past = torch.randint(codes, (1, context * (frame + 1) - 2), device=device)
        self.cache = DynamicCache(config=config)
        with torch.no_grad():
            self.network(self.past, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def sample(self, uniforms: Tensor) -> Tensor:
        """Sample a frame, one code per pass, from uniforms (N,): (N,) int64."""
        self.cache.crop(self.past.shape[1] - self.cache.get_seq_length())  # remove what the last frame added
        sampled: list[Tensor] = []
        tokens = torch.tensor([[0, self.action]], device=uniforms.device)  # the last context code and an action
        for uniform in uniforms:
            logits = self.network(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
            sampled.append(sample_categorical(logits[:, -1, : self.codes], uniform[None], 1.0))
            tokens = sampled[-1][None]
        return torch.cat(sampled)


@torch.no_grad()
def sample_without_cache(
    network: WavefrontNet | PixelCNN | WaveNet,
    condition: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    positions: int = 0,
) -> Tensor:
    """Sample the codes of ``network.sample`` one by one, each with a full pass over the whole grid or sequence.

    Args:
        positions: number of codes to sample, leaving the rest 0; 0 for all.
    """
    codes = torch.zeros_like(uniforms, dtype=torch.int64)
    for position in list(product(*map(range, codes.shape[1:])))[: positions or None]:
        at = (slice(None), *position)
        codes[at] = sample_categorical(network(codes, condition)[at], uniforms[at], temperature)
    return codes


def peers(settings: Settings) -> Section:
    """Time sampling one frame of codes: with the world model, a full pass per code, and GPT-2s of the same size."""
    world, remarks = settings.world, []
    dreams, dynamics, size = Dreams(world, 1), world.dynamics, sum(count_parameters(world).values())
    generator = torch.Generator().manual_seed(0)
    uniforms, actions = world.uniforms([generator]).to(world.device), torch.zeros(1, dtype=torch.int64).to(world.device)

    @torch.no_grad()
    def sample_by_full_passes() -> Tensor:
        condition = world.rollout.predict(dreams.state, actions)[1].condition
        return sample_without_cache(dynamics.wavefront, condition, uniforms)

    ours = world.step(dreams.state, actions, uniforms).codes
    equal, count = int((sample_by_full_passes() == ours).sum()), ours.numel()
    costs, dtype, full = dreams.flops(), world.dtype, "a full pass per code"
    codes_cost, full_cost = costs["predict"] + costs["sample"], costs["predict"] + count * costs["sample"]
    frames = (dreams.frames, "frame")
    contestants = [
        Contestant("world model, codes", dreams.imagine, *frames, codes_cost, dtype),
        Contestant("world model, codes and image", dreams.imagine_and_decode, *frames, sum(costs.values()), dtype),
        Contestant(full, sample_by_full_passes, 1, "frame", full_cost),
    ]
    notes = {full: f"{equal} of {count} codes equal ours"}
    try:
        for layers, context in GPT_SIZES:
            config = dynamics.config
            gpt = GPTSampler(
                size, config.codebook_size, count, len(world.action_names), layers, context, world.device, world.dtype
            )
            name = f"GPT-2, {layers} layers, after {context} frame{'s' if context > 1 else ''}"
            cost = count / GPT_FLOP_CODES * count_flops(lambda gpt=gpt: gpt.sample(uniforms.flatten()[:GPT_FLOP_CODES]))
            run = partial(gpt.sample, uniforms.flatten())
            contestants.append(Contestant(name, run, 1, "frame", cost, dtype))
            notes[name] = f"width {gpt.width}, {gpt.parameters:,} parameters, {gpt.parameters / size:.3f} of ours"
    except ImportError:
        remarks.append(MISSING_PACKAGE.format("transformers"))
    rows = race(contestants, min(MAX_SLOW_ROUNDS, settings.rounds), settings.stopwatch)
    for row in rows:
        row.remark = notes.get(row.name, "")
    remarks.append(
        f"codes of one frame, batch 1, all in {str(world.dtype).removeprefix('torch.')}; the world model has {size:,} "
        f"parameters with its VQ-VAE and a context of {dynamics.config.context_length} frames; the context of a "
        "GPT-2 is cached before timing starts"
    )
    return Section(rows, remarks)


def quantizer(settings: Settings) -> Section:
    """Time quantization and codebook updates by moving averages, ours and those of vector-quantize-pytorch."""
    config, device = settings.world.vqvae.quantizer.config, settings.world.device
    grid, remarks = settings.world.dynamics.config.grid, []
    codes, dim, decay, weight = config.codebook_size, config.code_dim, config.ema_decay, config.commitment_weight
    z = torch.randn(NUM_FRAMES, dim, *grid, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    plain = QuantizerConfig(codes, dim, ema_decay=decay, commitment_weight=weight, dead_code_reset_every=0)
    networks: dict[str, nn.Module] = {"worldmodel": VectorQuantizer(plain).to(device)}
    try:
        from vector_quantize_pytorch import VectorQuantize  # pyright: ignore[reportMissingImports]

        equal = {"decay": decay, "commitment_weight": weight, "rotation_trick": False}  # straight-through, as ours
        networks["vector-quantize-pytorch"] = VectorQuantize(dim, codes, accept_image_fmap=True, **equal).to(device)
    except ImportError:
        remarks.append(MISSING_PACKAGE.format("vector-quantize-pytorch"))

    def train(network: nn.Module) -> None:
        vectors, _, loss, *_ = network.train()(z)
        z.grad = None
        (vectors.sum() + loss.sum()).backward()

    @torch.no_grad()
    def evaluate(network: nn.Module) -> None:
        network.eval()(z)

    rows, flops = [], 2 * grid[0] * grid[1] * codes * dim  # FLOPs of comparing vectors with codes
    for mode in (train, evaluate):  # training first: its first batch initializes the codebook
        runs = {f"{mode.__name__}, {name}": partial(mode, network) for name, network in networks.items()}
        contestants = [Contestant(name, run, NUM_FRAMES, "frame", flops) for name, run in runs.items()]
        rows += race(contestants, settings.rounds, settings.stopwatch)
    remarks.append(
        f"{NUM_FRAMES} frames of {grid[0]} x {grid[1]} vectors of {dim}, {codes} codes, decay {decay}, no reset of "
        "dead codes; train is forward and backward"
    )
    return Section(rows, remarks)
