"""Dreams, frame by frame, with cached keys and values of the past frames."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models import transformer
from worldmodel.models.autoregressive.sampling import load_kernel
from worldmodel.models.dream_state import DreamState
from worldmodel.models.dynamics import Dynamics, Prediction
from worldmodel.models.precision import prepare_for_inference

FLOAT32_MODULES = ("wavefront", "outcome")  # the parts of a dynamics model that decide codes, rewards and ends


class Rollout:
    """The sequential form of a :class:`Dynamics`; in float32 it equals the parallel form up to rounding.

    The weights are read once, at construction. Each layer whose inputs are codes becomes a lookup table of its output
    for each code at each input position; the layer's output is the sum of the entries.

    Args:
        dtype: type in which linear layers and convolutions multiply. The modules that decide codes, rewards and ends
            stay in float32, and so does a transformer with a compiled kernel: its products are small, and conversions
            would cost as much.

    Attributes:
        dynamics: a copy in this precision, for parallel predictions.
    """

    def __init__(self, dynamics: Dynamics, dtype: torch.dtype = torch.float32) -> None:
        on_cpu = dynamics.position.device.type == "cpu" and dynamics.position.dtype == torch.float32
        self._is_compiled = on_cpu and load_kernel("transformer") is not None
        exact = (*FLOAT32_MODULES, "blocks") if self._is_compiled else FLOAT32_MODULES
        self.config, self.dynamics = dynamics.config, prepare_for_inference(dynamics, dtype, exact)
        self._wavefront_weights = dynamics.wavefront.pack_weights()
        if self.config.context_length:
            self._build_tables(dynamics, dtype)

    @property
    def _kernel(self) -> Any:
        """The compiled kernel or None; not an attribute, as a module cannot be pickled or copied."""
        return load_kernel("transformer") if self._is_compiled else None

    @torch.no_grad()
    def _build_tables(self, dynamics: Dynamics, dtype: torch.dtype) -> None:
        dim, width, blocks = self.config.code_dim, self.config.embed_dim, dynamics.blocks
        first = dynamics.motion.convolutions[0]
        embedding = F.pad(dynamics.embedding.weight, (0, 0, 0, 1))  # (K + 2, dim), the last one is beyond the border
        self._patch_table = _lookup_table(embedding, dynamics.patches.weight.unflatten(1, (-1, dim)).transpose(0, 1))
        self._patch_bias = dynamics.patches.bias.detach().clone()
        frame_weights = first.weight[:, : 2 * dim].unflatten(1, (2, dim))  # (out, 2, dim, 3, 3)
        self._motion_table = _lookup_table(embedding, frame_weights.permute(1, 3, 4, 0, 2).flatten(0, 2))
        coarse = nn.Conv2d(self.config.motion_channels, len(first.weight), 3, padding=1)
        coarse.weight, coarse.bias = nn.Parameter(first.weight[:, 2 * dim :].clone()), first.bias
        keys_values = nn.Linear(width, len(blocks) * 2 * width)
        for name in ("weight", "bias"):
            setattr(keys_values, name, nn.Parameter(torch.cat([getattr(block.keys_values, name) for block in blocks])))
        self._coarse_conv = prepare_for_inference(coarse, dtype)
        self._keys_values = prepare_for_inference(keys_values, torch.float32 if self._is_compiled else dtype)
        self._block_weights = self._kernel.pack_weights(blocks) if self._is_compiled else None

    @torch.no_grad()
    def start(self, codes: Tensor, actions: Tensor) -> DreamState:
        """Return the state after n initial frames (B, n, H, W) and the n-1 actions between them.

        Raises:
            ValueError: if the shapes do not match, or an action or code does not exist.
        """
        self._check_start(codes, actions)
        batch, config, position = codes.shape[0], self.config, self.dynamics.position
        empty = position.new_zeros(batch, len(position), config.num_layers * 2 * config.embed_dim)
        no_frame = torch.full((batch, *config.grid), config.codebook_size, dtype=torch.int64, device=codes.device)
        unknown = torch.full((batch, config.context_length), -1, dtype=torch.int64, device=codes.device)
        length = torch.zeros(batch, dtype=torch.int64, device=codes.device)
        last_two = torch.stack([no_frame, codes[:, 0]], 1)
        state = DreamState((empty,) * config.context_length, unknown, length, last_two)
        for step in range(actions.shape[1]):
            state = self._append(state, actions[:, step])[0] if config.context_length else state
            state = state._replace(codes=torch.stack([state.latest_codes, codes[:, step + 1]], 1))
        return state

    @torch.no_grad()
    def step(
        self, state: DreamState, actions: Tensor, uniforms: Tensor, temperature: float = 1.0
    ) -> tuple[DreamState, Prediction]:
        """Take actions (B,) and sample the next frame; its codes are ``state.latest_codes`` of the returned state.

        Args:
            uniforms: (B, H, W) in [0, 1), the only source of randomness; see :meth:`WavefrontNet.sample`.
        """
        state, prediction = self.predict(state, actions)
        codes = self.sample_codes(prediction.condition, uniforms, temperature)
        return state._replace(codes=torch.stack([state.latest_codes, codes], 1)), prediction

    def sample_codes(self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Sample the codes (B, H, W) of a frame from the condition of its prediction."""
        return self.dynamics.wavefront.sample(condition, uniforms, temperature, self._wavefront_weights)

    @torch.no_grad()
    def predict(self, state: DreamState, actions: Tensor) -> tuple[DreamState, Prediction]:
        """Take actions (B,) and predict what follows, before a frame is sampled; leading shape (B,)."""
        if not self.config.context_length:
            return state, self.dynamics.predict_without_context(actions.shape)
        state, x = self._append(state, actions)
        if self._is_compiled:
            x = self._kernel.forward_blocks(x, state.kv_cache, state.cache_length, self._block_weights)
        else:
            for layer, block in enumerate(self.dynamics.blocks):
                attended = self._attend_over_time(state, layer, block.project_query(x))
                x = block.forward_within_frames(x + block.over_time(attended))
        return state, self.dynamics.predict_from_features(
            x, state.actions, lambda *inputs: self._motion(state, *inputs)
        )

    def check_state(self, state: DreamState) -> None:
        """Check that a state fits this model: the compiled kernel does not check bounds.

        Raises:
            ValueError: if its tensors have other shapes.
        """
        config, batch = self.config, len(state.codes)
        frame = (batch, len(self.dynamics.position), config.num_layers * 2 * config.embed_dim)
        others = [(batch, config.context_length), (batch,), (batch, 2, *config.grid)]
        expected = [frame] * config.context_length + others
        found = [tuple(tensor.shape) for tensor in (*state.kv_cache, state.actions, state.cache_length, state.codes)]
        if found != expected:
            raise ValueError(f"the state is not one of this world: its tensors are {found}, expected {expected}")

    def _append(self, state: DreamState, actions: Tensor) -> tuple[DreamState, Tensor]:
        """Add the current frame and the action taken at it to the cache; also return its features."""
        dynamics = self.dynamics
        patches = _sum_entries(self._patch_table, dynamics.patchify(state.latest_codes)) + self._patch_bias
        features = dynamics.add_position_and_action(patches, actions)  # (B, patches, width)
        keys_values = self._keys_values(dynamics.remembered(features))
        past_actions = torch.cat([state.actions[:, 1:], dynamics.mask_actions(actions[:, None])], 1)
        length = (state.cache_length + 1).clamp_max(self.config.context_length)
        return DreamState((*state.kv_cache[1:], keys_values), past_actions, length, state.codes), features

    def _attend_over_time(self, state: DreamState, layer: int, query: Tensor) -> Tensor:
        """Attend from the current frame's patches to themselves in the cached frames: (B, patches, width) to the same.

        Elementwise products and sums: matrix products of a single query are slower.
        """
        bias, width = self.dynamics.blocks[layer].lag_bias, self.config.embed_dim
        start = layer * 2 * width
        query, heads = query[:, None] * (width // len(bias)) ** -0.5, (len(bias), -1)
        keys_values = torch.stack([frame[..., start : start + 2 * width] for frame in state.kv_cache], 1)
        query, keys, values = (part.unflatten(-1, heads) for part in (query, *keys_values.chunk(2, -1)))
        scores = (query * keys).sum(-1) + bias.flip(1).T[:, None]  # (B, M, patches, heads)
        age = torch.arange(self.config.context_length - 1, -1, -1, device=query.device)
        is_empty = (age >= state.cache_length[:, None])[:, :, None, None]
        return (scores.masked_fill(is_empty, float("-inf")).softmax(1)[..., None] * values).sum(1).flatten(2)

    def _motion(self, state: DreamState, coarse: Tensor, recent: Tensor) -> Tensor:
        """Apply :class:`MotionConvs` to the last two frames."""
        padded = F.pad(state.codes, (1, 1, 1, 1), value=self.config.codebook_size + 1)
        windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # (B, 2, H, W, 3, 3)
        update = _sum_entries(self._motion_table, windows.permute(0, 2, 3, 1, 4, 5).flatten(3))
        update = update + self._coarse_conv(coarse.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        add = self._kernel.add_gated if self._is_compiled else transformer.add_gated
        return self.dynamics.motion.forward_after_first(update, coarse, recent, add)

    def _check_start(self, codes: Tensor, actions: Tensor) -> None:
        if codes.ndim != 4 or codes.shape[2:] != self.config.grid or actions.shape != (len(codes), codes.shape[1] - 1):
            raise ValueError(
                f"a dream starts from codes (B, n, {', '.join(map(str, self.config.grid))}) and actions (B, n-1), "
                f"got {tuple(codes.shape)} and {tuple(actions.shape)}"
            )
        if self.config.num_actions and ((actions < 0) | (actions >= self.config.num_actions)).any():
            raise ValueError(f"actions must be in [0, {self.config.num_actions}), got {actions.tolist()}")
        if codes.min() < 0 or codes.max() >= self.config.codebook_size:
            raise ValueError(f"codes must be in [0, {self.config.codebook_size}), got {codes.min()} to {codes.max()}")


def _lookup_table(embedding: Tensor, weights: Tensor) -> Tensor:
    """Return a layer's output for each code and input position: (K, dim), (places, out, dim) -> (places, K, out)."""
    return embedding @ weights.transpose(1, 2)


def _sum_entries(table: Tensor, codes: Tensor) -> Tensor:
    """Sum the table's entries over input positions: (places, K, out), (…, places) int64 -> (…, out)."""
    places, size, _ = table.shape
    indices = codes + size * torch.arange(places, device=codes.device)
    return F.embedding_bag(indices.flatten(0, -2), table.flatten(0, 1), mode="sum").unflatten(0, codes.shape[:-1])
