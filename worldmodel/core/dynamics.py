"""The action-conditional video prior: p(next codes, reward, terminated | the last frames and actions).

Three nets, from coarse to fine. A transformer over 7×7 patches remembers the last eight frames. Gated convolutions at
full resolution compare the last two, told the actions: most of what moves is there. A :class:`WavefrontNet` then draws
the 441 codes of the next frame, each knowing those before it.

What is remembered of a frame depends on that frame and its action alone, so the memory can slide for ever: a frame
depends on the last eight exactly, however long the dream.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.core import workers
from worldmodel.core.autoregressive import standardized, start_near
from worldmodel.core.context import Block, Motion
from worldmodel.core.memory import Memory
from worldmodel.core.wavefront import WavefrontNet


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
        noise: share of the remembered codes replaced by random ones in training, so that small mistakes of a dream
            do not add up.
        imagined: share of the remembered frames replaced in training by ones that the prior draws in their place,
            each code given the true ones before it, so that it learns to go on from pictures of its own (parallel
            scheduled sampling, Mihaylova & Martins 2019, over frames).
        outcome_weight: of the reward's and the termination's part of the loss, beside the nats per code.
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
    noise: float = 0.02
    imagined: float = 0.0
    outcome_weight: float = 0.1
    untold: float = 0.0
    reward_scale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # YAML gives a list
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
    """See the module. ``forward`` and ``score`` take known frames in parallel; ``start`` and ``step`` dream.

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
        nats, outlook = self.score(batch.codes, known, actions)
        scale = self.config.reward_scale or 1.0
        squared = ((outlook.rewards - batch.rewards) / scale).square()
        surprise = F.binary_cross_entropy_with_logits(outlook.termination, batch.terminated, reduction="none")
        code_loss = _mean(nats, batch.frame_valid[:, 1:], self.training)
        reward_loss, termination_loss = (_mean(part, batch.step_valid, self.training) for part in (squared, surprise))
        return code_loss + self.config.outcome_weight * (reward_loss + termination_loss), {
            "bits_per_code": code_loss.detach() / math.log(2),
            "reward_error": reward_loss.detach(),
            "termination_nats": termination_loss.detach(),
        }

    def score(self, codes: Tensor, known: Tensor, actions: Tensor) -> tuple[Tensor, Outlook]:
        """How surprising each frame but the first is.

        Args:
            codes: (B, T, H, W) int64.
            known: (B, T-1, H, W) int64, the frames that the prior is told came before; these, or noisy ones.
            actions: (B, T-1) int64, -1 where it is not told.

        Returns:
            Nats per code (B, T-1), and the outlook.
        """
        outlook, targets = self.outlook(known, actions), codes[:, 1:]
        nats = F.cross_entropy(self._logits(targets, outlook).flatten(0, 2), targets.flatten(), reduction="none")
        return nats.view(targets.shape).mean((2, 3)), outlook

    def outlook(self, codes: Tensor, actions: Tensor) -> Outlook:
        """What follows each of T known frames and the action taken there, all at once.

        Args:
            codes: (B, T, H, W) int64.
            actions: (B, T) int64.

        Returns:
            The outlook on frame t+1 for every t, with leading shape (B, T).
        """
        if not self.config.context:
            return self._nothing(actions.shape)
        length, context = codes.shape[1], self.config.context
        features = self._frame_features(codes, actions)  # (B, T, patches, width)
        remembered = self.remembered(features)
        frames = torch.arange(length, device=codes.device)
        lags = frames[:, None] - frames  # query minus key
        x = features
        for block in self.blocks:
            x = block(x, *block.keys_values(remembered).chunk(2, -1), lags)
        before = F.pad(codes[:, :-1], (0, 0, 0, 0, 1, 0), value=self.config.codes)
        past = F.pad(self._known(actions), (context - 1, 0), value=-1).unfold(1, context, 1)  # (B, T, context)
        return self._outlook(x, torch.stack([before, codes], 2), past)

    def start(self, codes: Tensor, actions: Tensor) -> Memory:
        """Remember the frames that a dream begins with: n frames (B, n, H, W) and the n-1 actions between them.

        Raises:
            ValueError: if the numbers do not fit, or an action or code does not exist.
        """
        self._check(codes, actions)
        batch, config = codes.shape[0], self.config
        patches = self.position.shape[0]
        empty = self.position.new_zeros(config.blocks, batch, config.context, patches, config.width)
        none = torch.full((batch, *config.grid), config.codes, dtype=torch.int64, device=codes.device)
        unknown = torch.full((batch, config.context), -1, dtype=torch.int64, device=codes.device)
        filled = torch.zeros(batch, dtype=torch.int64, device=codes.device)
        memory = Memory(empty, empty, unknown, filled, torch.stack([none, codes[:, 0]], 1))
        for number in range(actions.shape[1]):
            memory = self.remember(memory, actions[:, number])[0] if self.config.context else memory
            memory = memory._replace(codes=torch.stack([memory.codes[:, 1], codes[:, number + 1]], 1))
        return memory

    def remember(self, memory: Memory, actions: Tensor) -> tuple[Memory, Tensor]:
        """Add the present frame and the action taken at it; returns also its features (B, 1, patches, width)."""
        features = self._frame_features(memory.codes[:, 1:], actions[:, None])
        remembered = self.remembered(features)
        fresh = torch.stack([block.keys_values(remembered) for block in self.blocks]).chunk(2, -1)
        keys, values = (torch.cat([old[:, :, 1:], new], 2) for old, new in zip(memory[:2], fresh, strict=True))
        past = torch.cat([memory.actions[:, 1:], self._known(actions[:, None])], 1)
        filled = (memory.filled + 1).clamp_max(self.config.context)
        return Memory(keys, values, past, filled, memory.codes), features

    @torch.no_grad()
    def step(
        self, memory: Memory, actions: Tensor, uniforms: Tensor, temperature: float = 1.0
    ) -> tuple[Memory, Outlook]:
        """Take actions (B,) and draw the next frame; its codes are ``memory.codes[:, 1]`` of the memory returned.

        Args:
            uniforms: (B, H, W) in [0, 1), the only source of chance; see :meth:`WavefrontNet.sample`.
        """
        memory, outlook = self.look(memory, actions)
        codes = self.wavefront.sample(outlook.condition, uniforms, temperature)
        return memory._replace(codes=torch.stack([memory.codes[:, 1], codes], 1)), outlook

    def look(self, memory: Memory, actions: Tensor) -> tuple[Memory, Outlook]:
        """Take actions (B,) and say what follows, before a frame is drawn; leading shape (B,)."""
        if not self.config.context:
            return memory, self._nothing(actions.shape)
        memory, x = self.remember(memory, actions)
        age = torch.arange(self.config.context - 1, -1, -1, device=actions.device)  # of the oldest to the newest
        hidden = age >= memory.filled[:, None]
        for number, block in enumerate(self.blocks):
            x = block.look(x, memory.keys[number], memory.values[number], hidden)
        outlook = self._outlook(x, memory.codes[:, None], memory.actions[:, None])
        return memory, Outlook(*(part[:, 0] for part in outlook))

    def _logits(self, targets: Tensor, outlook: Outlook) -> Tensor:
        """Of known frames (B, T, H, W), each code told those before it: (B·T, H, W, codes) float32."""
        return self.wavefront(targets.flatten(0, 1), outlook.condition.flatten(0, 1)).float()

    @torch.no_grad()
    def _imagined(self, codes: Tensor, actions: Tensor, generator: torch.Generator | None) -> Tensor:
        """The frames (B, T-1, H, W) that are told to have come before T, some of them drawn by the prior itself."""
        known, targets = codes[:, :-1], codes[:, 1:-1]
        odds = self._logits(targets, self.outlook(known[:, :-1], actions[:, :-1])).softmax(-1)
        drawn = (odds / torch.empty_like(odds).exponential_(generator=generator)).argmax(-1).view(targets.shape)
        chosen = torch.rand(targets.shape[:2], generator=generator, device=codes.device) < self.config.imagined
        return torch.cat([known[:, :1], torch.where(chosen[..., None, None], drawn, targets)], 1)

    def _frame_features(self, codes: Tensor, actions: Tensor) -> Tensor:
        """One frame and its action as patches: (B, T, H, W), (B, T) -> (B, T, patches, width)."""
        patch = self.config.patch
        x = self.embedding(codes)  # (B, T, H, W, dim)
        x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).transpose(3, 4)  # (B, T, H/p, W/p, p, p, dim)
        x = self.patches(x.flatten(4).flatten(2, 3))
        return x + self.position + self.action(self._known(actions) % (self.config.actions + 1))[:, :, None]

    def _outlook(self, x: Tensor, codes: Tensor, actions: Tensor) -> Outlook:
        """From patches (B, T, patches, width), the last two frames (B, T, 2, H, W) and the past actions."""
        height, width = self.config.grid
        patch, lags = self.config.patch, torch.arange(self.config.context, device=actions.device)
        recent = self.recent(lags * (self.config.actions + 1) + actions % (self.config.actions + 1)).sum(
            2
        )  # (B, T, width)
        coarse = self.unpatched(x).unflatten(2, (height // patch, width // patch)).unflatten(4, (patch, patch, -1))
        coarse = coarse.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # (B, T, H, W, motion)
        fine = self.embedding(codes).permute(0, 1, 3, 4, 2, 5).flatten(4)  # (B, T, H, W, 2·dim)
        condition = self.motion(fine.flatten(0, 1), coarse.flatten(0, 1), recent.flatten(0, 1))
        condition = condition.unflatten(0, actions.shape[:2])
        summary = torch.cat([x.mean(2), condition.mean((2, 3))], -1)
        rewards, termination = self.outcome(summary).float().unbind(-1)
        return Outlook(condition, rewards * (self.config.reward_scale or 1.0), termination)

    def _nothing(self, shape: torch.Size) -> Outlook:
        zeros = self.position.new_zeros
        return Outlook(zeros(*shape, *self.config.grid, self.config.motion), zeros(shape), zeros(shape))

    def _known(self, actions: Tensor) -> Tensor:
        """The actions that the prior is told: -1, "none", for all of them if it knows no actions."""
        return actions if self.config.actions else torch.full_like(actions, -1)

    def grow_from(self, other: "Dynamics") -> None:
        """Start with the weights of a shallower prior: the blocks that it lacks change nothing until they learn to.

        Raises:
            ValueError: if the two differ in more than blocks, the ways of training and the scale of rewards.
        """
        free = {"blocks": 0, "noise": 0.0, "imagined": 0.0, "outcome_weight": 0.0, "untold": 0.0, "reward_scale": 0.0}
        if replace(self.config, **free) != replace(other.config, **free) or self.config.blocks < other.config.blocks:
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

    def _check(self, codes: Tensor, actions: Tensor) -> None:
        if codes.ndim != 4 or codes.shape[2:] != self.config.grid or actions.shape != (len(codes), codes.shape[1] - 1):
            raise ValueError(
                f"a dream starts from codes (B, n, {', '.join(map(str, self.config.grid))}) and actions (B, n-1), "
                f"got {tuple(codes.shape)} and {tuple(actions.shape)}"
            )
        if self.config.actions and ((actions < 0) | (actions >= self.config.actions)).any():
            raise ValueError(f"actions must be in [0, {self.config.actions}), got {actions.tolist()}")
        if codes.min() < 0 or codes.max() >= self.config.codes:
            raise ValueError(f"codes must be in [0, {self.config.codes}), got {codes.min()} to {codes.max()}")


def _mean(values: Tensor, valid: Tensor, shared: bool) -> Tensor:
    """Over what is valid; with ``shared``, so that the mean over workers is that over all their valid values."""
    count = workers.mean(valid.sum()) if shared else valid.sum()
    return (values * valid).sum() / count.where(count > 0, 1)
