"""The action-conditional dynamics model: p(next codes, reward, terminated | past frames and actions).

It has three networks, from coarse to fine. A transformer over 7×7 patches attends to the last eight frames. Gated
convolutions at full resolution compare the last two frames, conditioned on the actions: they capture most motion. A
:class:`WavefrontNet` then samples the 441 codes of the next frame, each given those before it. (Default sizes.)

The keys and values of a frame depend on that frame and its action alone, so the context can slide forever: a prediction
depends on exactly the last eight frames, however long the dream.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import distributed
from worldmodel.models.autoregressive.kinds import init_from_codebook, standardize
from worldmodel.models.autoregressive.sampling import sample_categorical
from worldmodel.models.autoregressive.wavefront import WavefrontNet
from worldmodel.models.config import DynamicsConfig
from worldmodel.models.layers import module_list
from worldmodel.models.transformer import MotionConvs, SpatioTemporalBlock

CHUNK_STEPS = 64  # of an episode, predicted in one pass
# Settings in which a model may differ from the one that it grows from.
CHANGEABLE_FIELDS = (
    "num_layers",
    "num_targets",
    "token_noise",
    "scheduled_sampling",
    "action_dropout",
    "reward_termination_weight",
    "termination_pos_weight",
    "reward_scale",
)


class Batch(NamedTuple):
    """A training batch of episode segments: T frames and the T-1 steps between them."""

    codes: Tensor  # (B, T, H, W) int64
    actions: Tensor  # (B, T-1) int64; actions[:, t] leads from frame t to t+1
    rewards: Tensor  # (B, T-1) float32
    terminated: Tensor  # (B, T-1) float32, 0 or 1
    frame_valid: Tensor  # (B, T) bool, False beyond an episode's end
    step_valid: Tensor  # (B, T-1) bool


class Prediction(NamedTuple):
    """The prediction for the next frame, before its codes are sampled."""

    condition: Tensor  # (…, H, W, motion), the condition of its codes
    rewards: Tensor  # (…), expected
    termination_logits: Tensor  # (…)


class Dynamics(nn.Module):
    """An action-conditional dynamics model over the codes of a VQ-VAE: transformer, motion convolutions, WavefrontNet.

    It predicts from known frames in parallel; :class:`worldmodel.models.rollout.Rollout` dreams with it.

    Args:
        codebook: (K, code_dim) vectors that initialize the embedding and the output, so that similar codes start out
            similar.
    """

    def __init__(self, config: DynamicsConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        width, patch = config.embed_dim, config.patch_size
        if config.grid[0] % patch or config.grid[1] % patch:
            raise ValueError(f"model.grid must be a multiple of model.patch_size, got {config.grid} and {patch}")
        self.config = config
        self.embedding = nn.Embedding(config.codebook_size + 1, config.code_dim)  # the last row means "no frame"
        self.action = nn.Embedding(config.num_actions + 1, width)  # the last row means "unknown action"
        self.recent = nn.Embedding(config.context_length * (config.num_actions + 1), width)
        self.patches = nn.Linear(patch**2 * config.code_dim, width)
        self.position = nn.Parameter(torch.randn(config.grid[0] * config.grid[1] // patch**2, width) * 0.02)
        self.remembered = nn.LayerNorm(width)
        self.blocks = module_list(
            SpatioTemporalBlock(width, config.num_heads, config.context_length) for _ in range(config.num_layers)
        )
        self.unpatched = nn.Linear(width, patch**2 * config.motion_channels)
        self.motion = MotionConvs(config.code_dim, config.motion_channels, config.motion_layers, width)
        ar_embedding = nn.Embedding(config.codebook_size, config.code_dim)
        self.wavefront = WavefrontNet(ar_embedding, config.motion_channels, config.ar_channels, config.ar_layers)
        self.outcome = nn.Sequential(nn.Linear(width + config.motion_channels, width), nn.ReLU(), nn.Linear(width, 2))
        if codebook is not None:
            self._init_from_codebook(codebook)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss and metrics.

        The loss is nats per code, plus the weighted squared error of rewards and nats of terminations.

        Args:
            generator: source of randomness in training mode: sampled frames, code noise, action dropout and targets.
        """
        context, actions = batch.codes[:, :-1], batch.actions
        if self.training and self.config.action_dropout:
            draws = torch.rand(len(actions), 1, generator=generator, device=actions.device)
            actions = torch.where(draws < self.config.action_dropout, -1, actions)
        if self.training and self.config.scheduled_sampling:
            context = self._sample_context(batch.codes, actions, generator)
        if self.training and self.config.token_noise:
            noisy = torch.rand(context.shape, generator=generator, device=context.device) < self.config.token_noise
            random = torch.randint(self.config.codebook_size, context.shape, generator=generator, device=context.device)
            context = torch.where(noisy, random, context)
        rewards, terminated = batch.rewards, batch.terminated
        frame_valid, step_valid = batch.frame_valid[:, 1:], batch.step_valid
        steps = None
        if self.training and self.config.num_targets:
            order = torch.rand(actions.shape, generator=generator, device=actions.device).argsort(1)
            steps = order[:, : self.config.num_targets]
            parts = rewards, terminated, frame_valid, step_valid
            rewards, terminated, frame_valid, step_valid = (part.gather(1, steps) for part in parts)
        nats, prediction = self.score(batch.codes, context, actions, steps)
        squared_error = ((prediction.rewards - rewards) / self.config.reward_unit).square()
        pos_weight = torch.tensor(self.config.termination_pos_weight, device=nats.device)
        termination_nats = F.binary_cross_entropy_with_logits(
            prediction.termination_logits + pos_weight.log(), terminated, reduction="none", pos_weight=pos_weight
        )
        code_loss = _masked_mean(nats, frame_valid, self.training)
        reward_loss, termination_loss = (
            _masked_mean(part, step_valid, self.training) for part in (squared_error, termination_nats)
        )
        return code_loss + self.config.reward_termination_weight * (reward_loss + termination_loss), {
            "bits_per_code": code_loss.detach() / math.log(2),
            "reward_error": reward_loss.detach(),
            "termination_nats": termination_loss.detach(),
        }

    def score(
        self, codes: Tensor, context: Tensor, actions: Tensor, steps: Tensor | None = None
    ) -> tuple[Tensor, Prediction]:
        """Return the nats per code of known frames (B, Q), and the predictions.

        Args:
            codes: (B, T, H, W) int64, the frames to predict.
            context: (B, T-1, H, W) int64, the frames to predict from: the same ones, or noisy ones.
            actions: (B, T-1) int64, -1 for an unknown action.
            steps: (B, Q) int64, the steps t at which frame t+1 is predicted; all T-1 by default.
        """
        rows = torch.arange(len(codes), device=codes.device)[:, None]
        targets = codes[:, 1:] if steps is None else codes[rows, steps + 1]
        prediction = self.predict(context, actions, steps)
        nats = F.cross_entropy(self._logits(targets, prediction).flatten(0, 2), targets.flatten(), reduction="none")
        return nats.view(targets.shape).mean((2, 3)), prediction

    def predict(self, codes: Tensor, actions: Tensor, steps: Tensor | None = None) -> Prediction:
        """Predict what follows known frames and the actions taken there, in parallel.

        Args:
            codes: (B, T, H, W) int64.
            actions: (B, T) int64.
            steps: (B, Q) int64, the steps t at which frame t+1 is predicted; all T by default.

        Returns:
            Predictions with leading shape (B, Q).
        """
        if steps is None:
            steps = torch.arange(codes.shape[1], device=codes.device).expand(codes.shape[:2])
        if not self.config.context_length:
            return self.predict_without_context(steps.shape)
        rows, context_length = torch.arange(len(codes), device=codes.device)[:, None], self.config.context_length
        patches = self.patches(self.embedding(self.patchify(codes)).flatten(-2))
        features = self.add_position_and_action(patches, actions)  # (B, T, patches, width)
        normed = self.remembered(features)
        lags = steps[..., None] - torch.arange(codes.shape[1], device=codes.device)  # (B, Q, T), query minus key
        x = features[rows, steps]
        for block in self.blocks:
            x = block(x, *block.keys_values(normed).chunk(2, -1), lags)
        previous = F.pad(codes[:, :-1], (0, 0, 0, 0, 1, 0), value=self.config.codebook_size)
        last_two = torch.stack([previous, codes], -1)[rows, steps].flatten(0, 1)
        past_actions = F.pad(self.mask_actions(actions), (context_length - 1, 0), value=-1)
        past_actions = past_actions.unfold(1, context_length, 1)[rows, steps].flatten(0, 1)  # (B·Q, context)
        fine = self.embedding(last_two).flatten(3)  # (B·Q, H, W, 2·dim)
        prediction = self.predict_from_features(
            x.flatten(0, 1), past_actions, lambda coarse, recent: self.motion(fine, coarse, recent)
        )
        return Prediction(*(part.unflatten(0, steps.shape) for part in prediction))

    def _logits(self, targets: Tensor, prediction: Prediction) -> Tensor:
        """Return the logits of known frames (B, T, H, W), each code given those before it: (B·T, H, W, K) float32."""
        return self.wavefront(targets.flatten(0, 1), prediction.condition.flatten(0, 1)).float()

    @torch.no_grad()
    def _sample_context(self, codes: Tensor, actions: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the context frames (B, T-1, H, W), some of them sampled from the model (scheduled sampling).

        In each segment, only as many frames are sampled as may be needed; all subsets of that size are equally likely.
        Each is then used with the probability that yields the configured fraction overall.
        """
        context, device, fraction = codes[:, :-1], codes.device, self.config.scheduled_sampling
        candidates = context.shape[1] - 1  # the first frame is always real
        count = math.ceil(fraction * candidates)
        if not count:
            return context
        order = torch.rand(len(codes), candidates, generator=generator, device=device).argsort(1)
        steps, rows = order[:, :count], torch.arange(len(codes), device=device)[:, None]
        targets = context[rows, steps + 1]  # (B, count, H, W)
        prediction = self.predict(context[:, :-1], actions[:, :-1], steps)
        logits = self._logits(targets, prediction).view(*targets.shape, -1)
        sampled = sample_categorical(logits, torch.rand(targets.shape, generator=generator, device=device), 1.0)
        used = torch.rand(steps.shape, generator=generator, device=device) < fraction * candidates / count
        return context.index_put((rows, steps + 1), torch.where(used[..., None, None], sampled, targets))

    def patchify(self, codes: Tensor) -> Tensor:
        """Group codes into patches: (…, H, W) -> (…, patches, patch²)."""
        patch = self.config.patch_size
        x = codes.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).transpose(-3, -2)  # (…, H/p, W/p, p, p)
        return x.flatten(-2).flatten(-3, -2)

    def add_position_and_action(self, x: Tensor, actions: Tensor) -> Tensor:
        """Add the embeddings of position and action (…) to patches (…, patches, width)."""
        return x + self.position + self.action(self.mask_actions(actions) % (self.config.num_actions + 1))[..., None, :]

    def predict_from_features(
        self, x: Tensor, past_actions: Tensor, motion: Callable[[Tensor, Tensor], Tensor]
    ) -> Prediction:
        """Predict N frames from the transformer's output.

        Args:
            x: (N, patches, width).
            past_actions: (N, context).
            motion: :class:`MotionConvs` of the last two frames, as a function of the coarse features (N, H, W, motion)
                and the embedding of the past actions (N, width).
        """
        (height, width), patch, num_embeddings = self.config.grid, self.config.patch_size, self.config.num_actions + 1
        lags = torch.arange(self.config.context_length, device=past_actions.device)
        recent = self.recent(lags * num_embeddings + past_actions % num_embeddings).sum(1)  # (N, width)
        coarse = self.unpatched(x).unflatten(1, (height // patch, width // patch)).unflatten(3, (patch, patch, -1))
        coarse = coarse.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (N, H, W, motion)
        condition = motion(coarse, recent)
        summary = torch.cat([x.mean(1), condition.mean((1, 2))], -1)
        rewards, termination_logits = self.outcome(summary).float().unbind(-1)
        termination_logits = termination_logits - math.log(self.config.termination_pos_weight)
        return Prediction(condition, rewards * self.config.reward_unit, termination_logits)

    def predict_episode(self, codes: Tensor, actions: Tensor) -> Iterator[Prediction]:
        """Predict every step of an episode, codes (T, H, W) and actions (T,), in parts of at most CHUNK_STEPS steps."""
        for start in range(0, len(actions), CHUNK_STEPS):
            first = max(0, start - self.config.context_length)  # the frames before are context
            part = slice(first, start + CHUNK_STEPS)
            prediction = self.predict(codes[None, part], actions[None, part])
            yield Prediction(*(values[0, start - first :] for values in prediction))

    def predict_without_context(self, shape: torch.Size) -> Prediction:
        """Return the prediction of a model of single frames: all zeros."""
        zeros = self.position.new_zeros
        return Prediction(zeros(*shape, *self.config.grid, self.config.motion_channels), zeros(shape), zeros(shape))

    def mask_actions(self, actions: Tensor) -> Tensor:
        """Return the actions, or -1 ("unknown") for all of them if the model is not conditioned on actions."""
        return actions if self.config.num_actions else torch.full_like(actions, -1)

    def grow_from(self, other: "Dynamics") -> None:
        """Start from the weights of a shallower model; the added blocks change nothing until they are trained.

        Raises:
            ValueError: if the two differ in more than their layers, training settings and reward scale.
        """
        mine, theirs = ({**asdict(model.config), **dict.fromkeys(CHANGEABLE_FIELDS)} for model in (self, other))
        if self.config.num_layers < other.config.num_layers:
            mine["num_layers"], theirs["num_layers"] = self.config.num_layers, other.config.num_layers
        if differing := [name for name in mine if mine[name] != theirs[name]]:
            settings = "; ".join(f"model.{name} {theirs[name]}, not {mine[name]}" for name in differing)
            raise ValueError(f"a model can only grow in layers; to start from the other, give {settings}")
        self.load_state_dict(other.state_dict(), strict=False)
        with torch.no_grad():  # rewards and terminations stay the same, whatever their scales
            head = cast(nn.Linear, self.outcome[-1])
            reward_ratio = other.config.reward_unit / self.config.reward_unit
            head.weight[0] *= reward_ratio
            head.bias[0] *= reward_ratio
            head.bias[1] += math.log(self.config.termination_pos_weight / other.config.termination_pos_weight)
        for block in self.blocks[other.config.num_layers :]:
            for output in (block.over_time, block.over_space, block.feed_forward[-1]):
                for parameter in output.parameters():
                    nn.init.zeros_(parameter)

    def _init_from_codebook(self, codebook: Tensor) -> None:
        """Initialize embeddings and output weights with the codebook's vectors, standardized."""
        vectors = standardize(codebook)
        with torch.no_grad():
            self.embedding.weight[:-1] = vectors
        init_from_codebook(self.wavefront, vectors)


def _masked_mean(values: Tensor, valid: Tensor, across_workers: bool) -> Tensor:
    """Average the valid values; with ``across_workers``, so that the mean over workers is the overall average."""
    count = distributed.all_reduce_mean(valid.sum()) if across_workers else valid.sum()
    return (values * valid).sum() / count.where(count > 0, 1)
