"""The action-conditional video prior: p(next codes, reward, terminated | the last frames and actions).

Three nets, from coarse to fine. A transformer over 7×7 patches remembers the last eight frames. Gated convolutions at
full resolution compare the last two, told the actions: most of what moves is there. A :class:`WavefrontNet` then draws
the 441 codes of the next frame, each knowing those before it.

What is remembered of a frame depends on that frame and its action alone, so the memory can slide for ever: a frame
depends on the last eight exactly, however long the dream.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import distributed
from worldmodel.checks import check
from worldmodel.models.autoregressive.kinds import standardized, start_near
from worldmodel.models.autoregressive.sampling import draw
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.transformer import Block, Motion

# What may be another in a prior that has grown.
FREE = ("blocks", "targets", "noise", "imagined", "untold", "outcome_weight", "ending_weight", "reward_scale")


@dataclass(frozen=True)
class DynamicsConfig:
    """The sizes of a dynamics prior.

    Attributes:
        codes: K of the codebook.
        grid: height and width of the codes of a frame, multiples of the patch.
        actions: how many there are; 0 for a prior that knows no actions.
        dim: of a code's embedding.
        context: frames that are remembered; 0 makes a prior of single frames, which knows no past and no actions.
        patch: codes on a side of a patch.
        width: channels of the transformer.
        heads: of its attention.
        blocks: of the transformer.
        motion: channels of the full-resolution convolutions.
        motion_layers: of them.
        hidden: channels of the autoregressive net.
        layers: of it.
        targets: frames of a stretch that training predicts, chosen by chance; 0 for all but the first. Neighbouring
            frames are much alike, so a few frames of many stretches teach more than all frames of a few.
        noise: share of the remembered codes replaced by random ones in training, so that small mistakes of a dream
            do not add up.
        imagined: share of the remembered frames replaced in training by ones that the prior draws in their place,
            each code given the true ones before it, so that it learns to go on from pictures of its own (parallel
            scheduled sampling, Mihaylova & Martins 2019, over frames).
        outcome_weight: of the reward's and the termination's part of the loss, beside the nats per code.
        ending_weight: of a step that ends the episode, in the termination's part, so that a rare end is learnt as well
            as its absence; the probability that is told is corrected for it.
        untold: share of stretches whose actions are kept from it in training, so that it can also do without.
        reward_scale: typical size of a reward, which the squared error is measured in; 0 has ``worldmodel.train``
            measure it.
    """

    codes: int = 512
    grid: tuple[int, int] = (21, 21)
    actions: int = 9
    dim: int = 64
    context: int = 8
    patch: int = 3
    width: int = 192
    heads: int = 6
    blocks: int = 2
    motion: int = 96
    motion_layers: int = 3
    hidden: int = 64
    layers: int = 6
    targets: int = 0
    noise: float = 0.02
    imagined: float = 0.0
    outcome_weight: float = 0.1
    ending_weight: float = 1.0
    untold: float = 0.0
    reward_scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # YAML gives a list
        counts = ("codes", "dim", "patch", "width", "heads", "motion", "motion_layers", "hidden", "layers")
        weights = ("actions", "context", "blocks", "targets", "outcome_weight", "reward_scale")
        check("model", self, counts, weights, ("ending_weight",), ("noise", "imagined", "untold"))
        if self.width % self.heads:
            raise ValueError(f"model.width must be a multiple of model.heads, got {self.width} and {self.heads}")


class Batch(NamedTuple):
    """Parts of episodes to learn from, T frames and the T-1 steps between them."""

    codes: Tensor  # (B, T, H, W) int64
    actions: Tensor  # (B, T-1) int64; actions[:, t] leads from frame t to t+1
    rewards: Tensor  # (B, T-1) float32
    terminated: Tensor  # (B, T-1) float32, 0 or 1
    frame_valid: Tensor  # (B, T) bool, False beyond an episode's end
    step_valid: Tensor  # (B, T-1) bool


class Outlook(NamedTuple):
    """What is known of the next frame before any of it is drawn."""

    condition: Tensor  # (…, H, W, motion)
    rewards: Tensor  # (…), expected
    termination: Tensor  # (…), logit of its probability


class Dynamics(nn.Module):
    """See the module. It takes known frames in parallel; :class:`worldmodel.models.rollout.Rollout` dreams with it.

    Args:
        codebook: (K, dim) vectors that the embedding and the output start from, so that near codes look near.
    """

    def __init__(self, config: DynamicsConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        if config.grid[0] % config.patch or config.grid[1] % config.patch:
            raise ValueError(f"the grid must be a multiple of model.patch, got {config.grid} and {config.patch}")
        self.config = config
        self.embedding = nn.Embedding(config.codes + 1, config.dim)  # the last one says that there is no such frame
        self.action = nn.Embedding(config.actions + 1, config.width)  # the last one says that none is known
        self.recent = nn.Embedding(config.context * (config.actions + 1), config.width)
        patches = config.grid[0] * config.grid[1] // config.patch**2
        self.patches = nn.Linear(config.patch**2 * config.dim, config.width)
        self.position = nn.Parameter(torch.randn(patches, config.width) * 0.02)
        self.remembered = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.context) for _ in range(config.blocks))
        self.unpatched = nn.Linear(config.width, config.patch**2 * config.motion)
        self.motion = Motion(config.dim, config.motion, config.motion_layers, config.width)
        self.wavefront = WavefrontNet(
            nn.Embedding(config.codes, config.dim), config.motion, config.hidden, config.layers
        )
        self.outcome = nn.Sequential(
            nn.Linear(config.width + config.motion, config.width), nn.ReLU(), nn.Linear(config.width, 2)
        )
        if codebook is not None:
            self._start_from(codebook)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss: nats per code, plus the squared error of rewards and the nats of terminations.

        Args:
            generator: for what is drawn in training mode: frames imagined, noise, actions not told.
        """
        known, actions = batch.codes[:, :-1], batch.actions
        if self.training and self.config.untold:
            untold = torch.rand(len(actions), 1, generator=generator, device=actions.device) < self.config.untold
            actions = torch.where(untold, -1, actions)
        if self.training and self.config.imagined:
            known = self._imagined(batch.codes, actions, generator)
        if self.training and self.config.noise:
            noisy = torch.rand(known.shape, generator=generator, device=known.device) < self.config.noise
            random = torch.randint(self.config.codes, known.shape, generator=generator, device=known.device)
            known = torch.where(noisy, random, known)
        rewards, terminated = batch.rewards, batch.terminated
        frame_valid, step_valid = batch.frame_valid[:, 1:], batch.step_valid
        frames = None
        if self.training and self.config.targets:
            order = torch.rand(actions.shape, generator=generator, device=actions.device).argsort(1)
            frames = order[:, : self.config.targets]
            parts = rewards, terminated, frame_valid, step_valid
            rewards, terminated, frame_valid, step_valid = (part.gather(1, frames) for part in parts)
        nats, outlook = self.score(batch.codes, known, actions, frames)
        scale = self.config.reward_scale or 1.0
        squared = ((outlook.rewards - rewards) / scale).square()
        weight = torch.tensor(self.config.ending_weight, device=nats.device)
        surprise = F.binary_cross_entropy_with_logits(
            outlook.termination + weight.log(), terminated, reduction="none", pos_weight=weight
        )
        code_loss = _mean(nats, frame_valid, self.training)
        reward_loss, termination_loss = (_mean(part, step_valid, self.training) for part in (squared, surprise))
        return code_loss + self.config.outcome_weight * (reward_loss + termination_loss), {
            "bits_per_code": code_loss.detach() / math.log(2),
            "reward_error": reward_loss.detach(),
            "termination_nats": termination_loss.detach(),
        }

    def score(
        self, codes: Tensor, known: Tensor, actions: Tensor, frames: Tensor | None = None
    ) -> tuple[Tensor, Outlook]:
        """How surprising frames are.

        Args:
            codes: (B, T, H, W) int64.
            known: (B, T-1, H, W) int64, the frames that the prior is told came before; these, or noisy ones.
            actions: (B, T-1) int64, -1 where it is not told.
            frames: (B, Q) int64, the frames t whose t+1 is asked for; all T-1 of them by default.

        Returns:
            Nats per code (B, Q), and the outlook.
        """
        rows = torch.arange(len(codes), device=codes.device)[:, None]
        targets = codes[:, 1:] if frames is None else codes[rows, frames + 1]
        outlook = self.outlook(known, actions, frames)
        nats = F.cross_entropy(self._logits(targets, outlook).flatten(0, 2), targets.flatten(), reduction="none")
        return nats.view(targets.shape).mean((2, 3)), outlook

    def outlook(self, codes: Tensor, actions: Tensor, frames: Tensor | None = None) -> Outlook:
        """What follows known frames and the actions taken there, all at once.

        Args:
            codes: (B, T, H, W) int64.
            actions: (B, T) int64.
            frames: (B, Q) int64, the frames t whose t+1 is asked for; all T of them by default.

        Returns:
            With leading shape (B, Q).
        """
        if frames is None:
            frames = torch.arange(codes.shape[1], device=codes.device).expand(codes.shape[:2])
        if not self.config.context:
            return self.nothing(frames.shape)
        rows, context = torch.arange(len(codes), device=codes.device)[:, None], self.config.context
        features = self._frame_features(codes, actions)  # (B, T, patches, width)
        remembered = self.remembered(features)
        lags = frames[..., None] - torch.arange(codes.shape[1], device=codes.device)  # (B, Q, T), query minus key
        x = features[rows, frames]
        for block in self.blocks:
            x = block(x, *block.keys_values(remembered).chunk(2, -1), lags)
        before = F.pad(codes[:, :-1], (0, 0, 0, 0, 1, 0), value=self.config.codes)
        past = F.pad(self.known(actions), (context - 1, 0), value=-1).unfold(1, context, 1)  # (B, T, context)
        x, seen, past = (
            part.flatten(0, 1) for part in (x, torch.stack([before, codes], -1)[rows, frames], past[rows, frames])
        )
        fine = self.embedding(seen).flatten(3)  # (B·Q, H, W, 2·dim)
        outlook = self.outlook_from(x, past, lambda coarse, recent: self.motion(fine, coarse, recent))
        return Outlook(*(part.unflatten(0, frames.shape) for part in outlook))

    def _logits(self, targets: Tensor, outlook: Outlook) -> Tensor:
        """Of known frames (B, T, H, W), each code told those before it: (B·T, H, W, codes) float32."""
        return self.wavefront(targets.flatten(0, 1), outlook.condition.flatten(0, 1)).float()

    @torch.no_grad()
    def _imagined(self, codes: Tensor, actions: Tensor, generator: torch.Generator | None) -> Tensor:
        """The frames (B, T-1, H, W) that are told to have come before T, some of them drawn by the prior itself.

        Of each stretch only as many frames are drawn as may be needed, each other subset of them as likely, and then
        taken with the probability that makes them the share that the configuration asks for.
        """
        known, device = codes[:, :-1], codes.device
        places = known.shape[1] - 1  # the first frame is always true
        count = math.ceil(self.config.imagined * places)
        if not count:
            return known
        order = torch.rand(len(codes), places, generator=generator, device=device).argsort(1)
        frames, rows = order[:, :count], torch.arange(len(codes), device=device)[:, None]
        targets = known[rows, frames + 1]  # (B, count, H, W)
        logits = self._logits(targets, self.outlook(known[:, :-1], actions[:, :-1], frames)).view(*targets.shape, -1)
        drawn = draw(logits, torch.rand(targets.shape, generator=generator, device=device), 1.0)
        odds = self.config.imagined * places / count
        taken = torch.rand(frames.shape, generator=generator, device=device) < odds
        return known.index_put((rows, frames + 1), torch.where(taken[..., None, None], drawn, targets))

    def _frame_features(self, codes: Tensor, actions: Tensor) -> Tensor:
        """One frame and its action as patches: (B, T, H, W), (B, T) -> (B, T, patches, width)."""
        return self.placed(self.patches(self.embedding(self.patched(codes)).flatten(-2)), actions)

    def patched(self, codes: Tensor) -> Tensor:
        """The codes of each patch: (…, H, W) -> (…, patches, patch²)."""
        patch = self.config.patch
        x = codes.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).transpose(-3, -2)  # (…, H/p, W/p, p, p)
        return x.flatten(-2).flatten(-3, -2)

    def placed(self, x: Tensor, actions: Tensor) -> Tensor:
        """Patches (…, patches, width), told where they are and which action (…) was taken."""
        return x + self.position + self.action(self.known(actions) % (self.config.actions + 1))[..., None, :]

    def outlook_from(self, x: Tensor, past: Tensor, motion: Callable[[Tensor, Tensor], Tensor]) -> Outlook:
        """The outlook on N frames from what attention made of the patches.

        Args:
            x: (N, patches, width).
            past: the last actions, (N, context).
            motion: :class:`Motion` of the last two frames, told the coarse context (N, H, W, motion) and what
                stands for the actions (N, width).
        """
        (height, width), patch = self.config.grid, self.config.patch
        lags = torch.arange(self.config.context, device=past.device)
        recent = self.recent(lags * (self.config.actions + 1) + past % (self.config.actions + 1)).sum(1)  # (N, width)
        coarse = self.unpatched(x).unflatten(1, (height // patch, width // patch)).unflatten(3, (patch, patch, -1))
        coarse = coarse.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (N, H, W, motion)
        condition = motion(coarse, recent)
        summary = torch.cat([x.mean(1), condition.mean((1, 2))], -1)
        rewards, termination = self.outcome(summary).float().unbind(-1)
        termination = termination - math.log(self.config.ending_weight)
        return Outlook(condition, rewards * (self.config.reward_scale or 1.0), termination)

    def nothing(self, shape: torch.Size) -> Outlook:
        """The outlook of a prior of single frames."""
        zeros = self.position.new_zeros
        return Outlook(zeros(*shape, *self.config.grid, self.config.motion), zeros(shape), zeros(shape))

    def known(self, actions: Tensor) -> Tensor:
        """The actions that the prior is told: -1, "none", for all of them if it knows no actions."""
        return actions if self.config.actions else torch.full_like(actions, -1)

    def grow_from(self, other: "Dynamics") -> None:
        """Start with the weights of a shallower prior: the blocks that it lacks change nothing until they learn to.

        Raises:
            ValueError: if the two differ in more than blocks, the ways of training and the scale of rewards.
        """
        mine, theirs = ({**asdict(prior.config), **dict.fromkeys(FREE)} for prior in (self, other))
        if mine != theirs or self.config.blocks < other.config.blocks:
            raise ValueError(f"a prior grows by blocks alone, got {other.config} to grow into {self.config}")
        self.load_state_dict(other.state_dict(), strict=False)
        for block in self.blocks[other.config.blocks :]:
            for output in (block.over_time, block.over_space, block.feed_forward[-1]):
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)

    def _start_from(self, codebook: Tensor) -> None:
        """Let codes with near vectors have near embeddings and near logits from the first step on."""
        vectors = standardized(codebook)
        with torch.no_grad():
            self.embedding.weight[:-1] = vectors
        start_near(self.wavefront, vectors)


def _mean(values: Tensor, valid: Tensor, shared: bool) -> Tensor:
    """Over what is valid; with ``shared``, so that the mean over workers is that over all their valid values."""
    count = distributed.mean(valid.sum()) if shared else valid.sum()
    return (values * valid).sum() / count.where(count > 0, 1)
