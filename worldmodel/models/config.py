"""Settings of the VQ-VAE, the dynamics model and the spatial prior. Free of torch, so that ``--help`` is fast."""

from dataclasses import dataclass, field
from typing import Literal

from worldmodel.checks import check_ranges
from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.run_kind import RunKind

GridNetKind = Literal["pixelcnn", "wavefront"]  # autoregressive networks over an (H, W) grid
NetKind = Literal["pixelcnn", "wavefront", "wavenet"]

NUM_CONTEXT_FRAMES = 6  # real frames that a dream starts from, as in van den Oord et al. 2017, section 4.4
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class VQVAEConfig:
    """Architecture and loss scale of a VQ-VAE.

    Attributes:
        in_channels: number of image channels, 3 for RGB.
        hidden_channels: number of channels of every hidden layer.
        residual_channels: number of channels between the two convolutions of a residual block.
        num_residual_blocks: number of residual blocks in the encoder, and again in the decoder.
        num_downsamples: number of stride-2 convolutions; each halves the grid, so two turn 84×84 into 21×21.
        num_unstrided: number of stride-1 convolutions after the encoder's stride-2 ones, and before the decoder's.
        kernel_size: side of the kernels of the stride-2 and stride-1 convolutions, not of the residual blocks: 4, or an
            odd number of 3 or more, which num_unstrided needs.
        codes_per_position: number of codes at each position of the grid: the encoder's vector has so many parts of
            ``quantizer.code_dim``, quantized with one codebook. Priors and world models need 1.
        data_variance: variance of the images in [0, 1]; the squared error is divided by it, which sets its weight
            relative to the quantizer's loss; 0 measures it when training starts.
        quantizer: quantizer between encoder and decoder.
    """

    in_channels: int = 3
    hidden_channels: int = 128
    residual_channels: int = 64
    num_residual_blocks: int = 2
    num_downsamples: int = 2
    num_unstrided: int = 0
    kernel_size: int = 4
    codes_per_position: int = 1
    data_variance: float = 0.0
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        check_ranges(
            "model",
            self,
            counts=("in_channels", "hidden_channels", "residual_channels", "kernel_size", "codes_per_position"),
            non_negative=("num_residual_blocks", "num_downsamples", "num_unstrided", "data_variance"),
        )
        if self.kernel_size < 3 or (self.kernel_size % 2 == 0 and (self.kernel_size != 4 or self.num_unstrided)):
            known = "odd with model.num_unstrided, 3 or more" if self.num_unstrided else "4, or odd and 3 or more"
            raise ValueError(f"model.kernel_size must be {known}, got {self.kernel_size}")


@dataclass(frozen=True)
class DynamicsConfig:
    """Architecture and training loss of a dynamics model.

    Attributes:
        codebook_size: number of codes K in the VQ-VAE's codebook.
        grid: height and width of a frame in codes, multiples of the patch size.
        num_actions: number of actions; 0 makes a model that is not conditioned on actions.
        code_dim: dimension of a code's embedding.
        context_length: number of past frames that the model attends to; 0 makes a model of single frames, without past
            and actions.
        patch_size: side length of a transformer patch, in codes.
        embed_dim: embedding dimension of the transformer, a multiple of the number of heads.
        num_heads: number of attention heads in each transformer layer.
        num_layers: number of transformer layers.
        motion_channels: number of channels of the full-resolution convolutions over the last two frames.
        motion_layers: number of full-resolution convolutions.
        ar_channels: number of channels of the autoregressive network that samples a frame's codes.
        ar_layers: number of layers of the autoregressive network, 2 or more.
        num_targets: number of randomly chosen frames of each segment that the training loss covers; 0 covers all but
            the first. Neighboring frames are alike: a few frames of many segments teach more than all frames of a few.
        token_noise: probability that a context code is replaced by a random one in training, so that small errors of a
            rollout do not accumulate.
        scheduled_sampling: probability that a context frame is replaced in training by one that the model samples, each
            code given the true codes before it, so that the model learns to continue from its own frames (parallel
            scheduled sampling, Mihaylova & Martins 2019, over frames).
        reward_termination_weight: weight of the reward and termination losses, relative to the nats per code.
        termination_pos_weight: weight of episode-ending steps in the termination loss, above 1 to learn rare ends;
            predicted probabilities are corrected for it.
        action_dropout: probability that the actions of a training segment are hidden, so that the model also works
            without them.
        reward_scale: typical size of a reward, by which reward errors are divided; 0 measures it when training starts.
    """

    codebook_size: int = 512
    grid: tuple[int, int] = (21, 21)
    num_actions: int = 9
    code_dim: int = 64
    context_length: int = 8
    patch_size: int = 3
    embed_dim: int = 192
    num_heads: int = 6
    num_layers: int = 2
    motion_channels: int = 96
    motion_layers: int = 3
    ar_channels: int = 64
    ar_layers: int = 6
    num_targets: int = 0
    token_noise: float = 0.02
    scheduled_sampling: float = 0.0
    reward_termination_weight: float = 0.1
    termination_pos_weight: float = 1.0
    action_dropout: float = 0.0
    reward_scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # YAML gives a list
        sizes = ("codebook_size", "code_dim", "patch_size", "embed_dim", "num_heads")
        layers = ("motion_channels", "motion_layers", "ar_channels", "ar_layers")
        optional = ("num_actions", "context_length", "num_layers", "num_targets")
        check_ranges(
            "model",
            self,
            counts=(*sizes, *layers),
            non_negative=(*optional, "reward_termination_weight", "reward_scale"),
            positive=("termination_pos_weight",),
            fractions=("token_noise", "scheduled_sampling", "action_dropout"),
        )
        if self.ar_layers < 2 or (self.context_length and not self.num_layers):
            raise ValueError(
                "model.ar_layers must be 2 or more, and model.num_layers 1 or more with a context, "
                f"got {self.ar_layers} and {self.num_layers}"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"model.embed_dim must be a multiple of model.num_heads, got {self.embed_dim} and {self.num_heads}"
            )

    @property
    def reward_unit(self) -> float:
        """The reward that a prediction of 1 stands for: ``reward_scale``, or 1 if that was not measured."""
        return self.reward_scale or 1.0


@dataclass(frozen=True)
class SpatialPriorConfig:
    """Architecture of a spatial prior.

    Attributes:
        net: autoregressive network: pixelcnn conditions each code on all before it; wavefront on fewer, and samples a
            diagonal at a time; wavenet is for sequences of codes, such as audio.
        codebook_size: number of codes K in the codebook.
        grid: height and width of an image in codes; for a wavenet, the length of a training sequence in codes.
        num_classes: number of image or sequence classes to condition on; 0 makes an unconditional prior.
        code_dim: dimension of a code's embedding.
        hidden_channels: number of channels of the network's layers.
        num_layers: number of layers of the network; 2 or more for a pixelcnn or wavefront.
        kernel_size: kernel width of a pixelcnn's layers in codes, an odd number of 3 or more.
        dropout: dropout probability in the layers of a pixelcnn or wavenet, in [0, 1).
        dilation_cycle: number of wavenet layers after which the dilations start again at 1.
    """

    net: NetKind = "pixelcnn"
    codebook_size: int = 512
    grid: tuple[int, ...] = (32, 32)
    num_classes: int = 0
    code_dim: int = 64
    hidden_channels: int = 64
    num_layers: int = 10
    kernel_size: int = 3
    dropout: float = 0.0
    dilation_cycle: int = 9

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # YAML gives a list
        check_ranges(
            "model",
            self,
            counts=("codebook_size", "code_dim", "hidden_channels", "num_layers", "kernel_size", "dilation_cycle"),
            non_negative=("num_classes",),
        )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")
        if self.dropout and self.net == "wavefront":
            raise ValueError(f"model.dropout is for --model.net pixelcnn or wavenet, got {self.dropout} with wavefront")


VQVAE_RUN = RunKind(VQVAEConfig, "worldmodel.models.vqvae:VQVAE.from_config")
DYNAMICS_RUN = RunKind(DynamicsConfig, "worldmodel.models.dynamics:Dynamics")
SPATIAL_PRIOR_RUN = RunKind(
    SpatialPriorConfig, "worldmodel.models.spatial_prior:SpatialPrior", choices=("num_samples",)
)
