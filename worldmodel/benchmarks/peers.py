"""What others would pay: other ways to draw a frame of codes, and the other quantizer."""

from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from worldmodel.benchmarks.dream import Dreams
from worldmodel.benchmarks.limits import flops_of
from worldmodel.benchmarks.settings import Settings, parameters
from worldmodel.benchmarks.timing import NEEDS, Contestant, Section, race
from worldmodel.models.autoregressive.pixelcnn import PixelCNN
from worldmodel.models.autoregressive.sampling import draw
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.autoregressive.wavenet import WaveNet
from worldmodel.models.quantizers.nearest import QuantizerConfig, VectorQuantizer

SLOW_ROUNDS = 3  # at most, of what takes seconds
GPTS = ((10, 1), (6, 1), (10, 6))  # layers, and frames of context; ten layers of four heads are those of IRIS
HEADS = 4
GPT_CODES = 4  # of a frame that FLOPs are counted of
IMAGES = 64  # that the quantizers are given


class GPTSampler:
    """A GPT-2 of random weights that draws frames as sequences of tokens, with a cache of keys and values.

    A frame is its codes one by one, then the action taken there (IRIS, Micheli et al. 2023). What came before the
    frame to draw is in the cache to begin with.

    Args:
        size: parameters that it should have in all.
        codes: K.
        frame: codes of a frame.
        actions: how many there are.
        layers: of the net.
        context: frames before the one to draw; it has positions for no more.
        dtype: of its weights and of all it computes.

    Raises:
        ImportError: without the package transformers.
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
        from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

        vocabulary, positions = codes + actions, (context + 1) * (frame + 1)

        def count(width: int) -> int:
            return (vocabulary + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width

        widths = range(HEADS, 64 * HEADS * HEADS, HEADS)
        self.width = min(widths, key=lambda width: abs(count(width) - size))
        config = GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_embd=self.width,
            n_layer=layers,
            n_head=HEADS,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.net = GPT2LMHeadModel(config).to(device, dtype).eval()
        self.codes, self.action = codes, codes
        self.parameters = sum(p.numel() for p in self.net.parameters())
        self.past = torch.randint(codes, (1, context * (frame + 1) - 2), device=device)
        self.cache = DynamicCache(config=config)
        with torch.no_grad():
            self.net(self.past, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def sample(self, uniforms: Tensor) -> Tensor:
        """Draw a frame, one code a pass, from uniforms (N,): (N,) int64."""
        self.cache.crop(self.past.shape[1] - self.cache.get_seq_length())  # minus what the last frame added
        drawn: list[Tensor] = []
        tokens = torch.tensor([[0, self.action]], device=uniforms.device)  # the last code before, and an action
        for uniform in uniforms:
            logits = self.net(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
            drawn.append(draw(logits[:, -1, : self.codes], uniform[None], 1.0))
            tokens = drawn[-1][None]
        return torch.cat(drawn)


@torch.no_grad()
def sample_by_full_passes(
    net: WavefrontNet | PixelCNN | WaveNet,
    condition: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    positions: int = 0,
) -> Tensor:
    """The codes that ``net.sample`` draws, one by one, each from a pass over the whole grid or line.

    Args:
        positions: draw so many and leave the rest 0; 0 draws all.
    """
    codes = torch.zeros_like(uniforms, dtype=torch.int64)
    for place in list(product(*map(range, codes.shape[1:])))[: positions or None]:
        here = (slice(None), *place)
        codes[here] = draw(net(codes, condition)[here], uniforms[here], temperature)
    return codes


def peers(settings: Settings) -> Section:
    """Draw the codes of one frame, beside a full pass for each code and beside GPT-2s of as many parameters."""
    world, remarks = settings.world, []
    dreams, dynamics, size = Dreams(world, 1), world.dynamics, sum(parameters(world).values())
    generator = torch.Generator().manual_seed(0)
    uniforms, actions = world.uniforms([generator]).to(world.device), torch.zeros(1, dtype=torch.int64).to(world.device)

    @torch.no_grad()
    def by_full_passes() -> Tensor:
        condition = world.rollout.look(dreams.state, actions)[1].condition
        return sample_by_full_passes(dynamics.wavefront, condition, uniforms)

    ours = world.step(dreams.state, actions, uniforms).codes
    equal, count = int((by_full_passes() == ours).sum()), ours.numel()
    costs, dtype = dreams.flops(), world.dtype
    contestants = [
        Contestant("world model, codes", dreams.imagine, dreams.frames, "frame", costs["look"] + costs["draw"], dtype),
        Contestant("world model, codes and picture", dreams.show, dreams.frames, "frame", sum(costs.values()), dtype),
        Contestant("a full pass for each code", by_full_passes, 1, "frame", costs["look"] + count * costs["draw"]),
    ]
    said = {"a full pass for each code": f"{equal} of {count} codes equal ours"}
    try:
        for layers, context in GPTS:
            config = dynamics.config
            gpt = GPTSampler(
                size, config.codes, count, len(world.action_names), layers, context, world.device, world.dtype
            )
            name = f"GPT-2, {layers} layers, after {context} frame{'s' if context > 1 else ''}"
            cost = count / GPT_CODES * flops_of(lambda gpt=gpt: gpt.sample(uniforms.flatten()[:GPT_CODES]))
            run = partial(gpt.sample, uniforms.flatten())
            contestants.append(Contestant(name, run, 1, "frame", cost, dtype))
            said[name] = f"{gpt.width} wide, {gpt.parameters:,} parameters, {gpt.parameters / size:.3f} of ours"
    except ImportError:
        remarks.append(NEEDS.format("transformers"))
    rows = race(contestants, min(SLOW_ROUNDS, settings.rounds), settings.watch)
    for row in rows:
        row.remark = said.get(row.name, "")
    remarks.append(
        f"codes of one frame, batch 1, all in {str(world.dtype).removeprefix('torch.')}; the world model has {size:,} "
        f"parameters, VQ-VAE and prior, and remembers "
        f"{dynamics.config.context} frames; what a GPT-2 remembers is in its cache before the clock starts"
    )
    return Section(rows, remarks)


def quantizer(settings: Settings) -> Section:
    """Quantize, and learn the codebook by moving averages, beside vector-quantize-pytorch under equal settings."""
    config, device = settings.world.vqvae.quantizer.config, settings.world.device
    grid, dim, remarks = settings.world.dynamics.config.grid, config.dim, []
    z = torch.randn(IMAGES, dim, *grid, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    plain = QuantizerConfig(config.codes, dim, decay=config.decay, commitment=config.commitment, revive_every=0)
    nets: dict[str, nn.Module] = {"worldmodel": VectorQuantizer(plain).to(device)}
    try:
        from vector_quantize_pytorch import VectorQuantize

        nets["vector-quantize-pytorch"] = VectorQuantize(
            dim,
            config.codes,
            decay=config.decay,
            commitment_weight=config.commitment,
            accept_image_fmap=True,
            rotation_trick=False,  # the straight-through gradient, as ours
        ).to(device)
    except ImportError:
        remarks.append(NEEDS.format("vector-quantize-pytorch"))

    def train(net: nn.Module) -> None:
        vectors, _, loss, *_ = net.train()(z)
        z.grad = None
        (vectors.sum() + loss.sum()).backward()

    @torch.no_grad()
    def evaluate(net: nn.Module) -> None:
        net.eval()(z)

    rows, scores = [], 2 * grid[0] * grid[1] * config.codes * dim  # of each vector with each code
    for mode in (train, evaluate):  # in this order, for the first batch of all places the codebook
        runs = {f"{mode.__name__}, {name}": partial(mode, net) for name, net in nets.items()}
        contestants = [Contestant(name, run, IMAGES, "frame", scores) for name, run in runs.items()]
        rows += race(contestants, settings.rounds, settings.watch)
    remarks.append(
        f"{IMAGES} frames of {grid[0]} x {grid[1]} vectors of {dim}, {config.codes} codes, decay {config.decay}, "
        "no revival of codes; train is forward and backward"
    )
    return Section(rows, remarks)
