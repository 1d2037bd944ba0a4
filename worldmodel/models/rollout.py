"""Dreams, frame by frame, with what was worked out for the frames before kept."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.models import transformer
from worldmodel.models.autoregressive.sampling import compiled_loop
from worldmodel.models.dream_state import Memory
from worldmodel.models.dynamics import Dynamics, Outlook
from worldmodel.models.precision import prepared

DECIDING = ("wavefront", "outcome")  # the parts of a prior that decide codes, rewards and ends


class Rollout:
    """The sequential face of a :class:`Dynamics`, which in float32 is its parallel one but for rounding.

    Weights are taken as they are when this is made. A layer that codes go into becomes a table of what it makes of each
    code at each of the places that it sees: what it makes of all is their sum.

    Args:
        dtype: what linear layers and convolutions multiply in. What decides codes, rewards and ends stays in float32,
            and so does the context where it is compiled: its products are small, and conversions would cost as much.

    Attributes:
        dynamics: a copy in this precision, for the parallel face.
    """

    def __init__(self, dynamics: Dynamics, dtype: torch.dtype = torch.float32) -> None:
        on_cpu = dynamics.position.device.type == "cpu" and dynamics.position.dtype == torch.float32
        self._kernel = compiled_loop("transformer") if on_cpu else None
        exact = (*DECIDING, "blocks") if self._kernel else DECIDING
        self.config, self.dynamics = dynamics.config, prepared(dynamics, dtype, exact)
        self._packed = dynamics.wavefront.packed()
        if self.config.context:
            self._prepare(dynamics, dtype)

    @torch.no_grad()
    def _prepare(self, dynamics: Dynamics, dtype: torch.dtype) -> None:
        dim, blocks, first = self.config.dim, dynamics.blocks, dynamics.motion.convolutions[0]
        embedding = F.pad(dynamics.embedding.weight, (0, 0, 0, 1))  # (K + 2, dim), the last one beyond the border
        self._patches = _table(embedding, dynamics.patches.weight.unflatten(1, (-1, dim)).transpose(0, 1))
        self._patches_bias = dynamics.patches.bias
        of_frames = first.weight[:, : 2 * dim].unflatten(1, (2, dim))  # (out, 2, dim, 3, 3)
        self._motion = _table(embedding, of_frames.permute(1, 3, 4, 0, 2).flatten(0, 2))
        coarse = nn.Conv2d(self.config.motion, len(first.weight), 3, padding=1)
        coarse.weight, coarse.bias = nn.Parameter(first.weight[:, 2 * dim :].clone()), first.bias
        remembered = nn.Linear(self.config.width, len(blocks) * 2 * self.config.width)
        for name in ("weight", "bias"):
            setattr(remembered, name, nn.Parameter(torch.cat([getattr(block.keys_values, name) for block in blocks])))
        self._coarse = prepared(coarse, dtype)
        self._remembered = prepared(remembered, torch.float32 if self._kernel else dtype)
        self._blocks = self._kernel.weights_of(blocks) if self._kernel else None

    @torch.no_grad()
    def start(self, codes: Tensor, actions: Tensor) -> Memory:
        """Remember the frames that a dream begins with: n frames (B, n, H, W) and the n-1 actions between them.

        Raises:
            ValueError: if the numbers do not fit, or an action or code does not exist.
        """
        self._check(codes, actions)
        batch, config, position = codes.shape[0], self.config, self.dynamics.position
        empty = position.new_zeros(batch, len(position), config.blocks * 2 * config.width)
        none = torch.full((batch, *config.grid), config.codes, dtype=torch.int64, device=codes.device)
        unknown = torch.full((batch, config.context), -1, dtype=torch.int64, device=codes.device)
        filled = torch.zeros(batch, dtype=torch.int64, device=codes.device)
        memory = Memory((empty,) * config.context, unknown, filled, torch.stack([none, codes[:, 0]], 1))
        for number in range(actions.shape[1]):
            memory = self._remember(memory, actions[:, number])[0] if config.context else memory
            memory = memory._replace(codes=torch.stack([memory.codes[:, 1], codes[:, number + 1]], 1))
        return memory

    @torch.no_grad()
    def step(
        self, memory: Memory, actions: Tensor, uniforms: Tensor, temperature: float = 1.0
    ) -> tuple[Memory, Outlook]:
        """Take actions (B,) and draw the next frame; its codes are ``memory.codes[:, 1]`` of the memory returned.

        Args:
            uniforms: (B, H, W) in [0, 1), the only source of chance; see :meth:`WavefrontNet.sample`.
        """
        memory, outlook = self.look(memory, actions)
        codes = self.draw(outlook.condition, uniforms, temperature)
        return memory._replace(codes=torch.stack([memory.codes[:, 1], codes], 1)), outlook

    def draw(self, condition: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """The codes (B, H, W) of a frame on which this is the outlook."""
        return self.dynamics.wavefront.sample(condition, uniforms, temperature, self._packed)

    @torch.no_grad()
    def look(self, memory: Memory, actions: Tensor) -> tuple[Memory, Outlook]:
        """Take actions (B,) and say what follows, before a frame is drawn; leading shape (B,)."""
        if not self.config.context:
            return memory, self.dynamics.nothing(actions.shape)
        memory, x = self._remember(memory, actions)
        if self._kernel:
            x = self._kernel.attend(x, memory.frames, memory.filled, self._blocks)
        else:
            for number, block in enumerate(self.dynamics.blocks):
                x = block.within(x + block.over_time(self._recall(memory, number, block.queried(x))))
        return memory, self.dynamics.outlook_from(x, memory.actions, lambda *told: self._moved(memory.codes, *told))

    def check(self, memory: Memory) -> None:
        """Refuse a memory that is none of this prior's: a compiled loop reads it without looking.

        Raises:
            ValueError: if it is of other sizes.
        """
        config, batch = self.config, len(memory.codes)
        frame = (batch, len(self.dynamics.position), config.blocks * 2 * config.width)
        expected = [frame] * config.context + [(batch, config.context), (batch,), (batch, 2, *config.grid)]
        found = [tuple(tensor.shape) for tensor in (*memory.frames, memory.actions, memory.filled, memory.codes)]
        if found != expected:
            raise ValueError(f"the state is none of this world's: its tensors are {found}, expected {expected}")

    def _remember(self, memory: Memory, actions: Tensor) -> tuple[Memory, Tensor]:
        """Add the present frame and the action taken at it; returns also its features (B, patches, width)."""
        dynamics = self.dynamics
        patches = _looked_up(self._patches, dynamics.patched(memory.codes[:, 1])) + self._patches_bias
        features = dynamics.placed(patches, actions)
        fresh = self._remembered(dynamics.remembered(features))
        past = torch.cat([memory.actions[:, 1:], dynamics.known(actions[:, None])], 1)
        filled = (memory.filled + 1).clamp_max(self.config.context)
        return Memory((*memory.frames[1:], fresh), past, filled, memory.codes), features

    def _recall(self, memory: Memory, number: int, query: Tensor) -> Tensor:
        """What a block sees of the remembered frames: (B, patches, width) to the same.

        Products of whole tensors and their sums: matrix products of a single query are slower.
        """
        bias, start, width = self.dynamics.blocks[number].lag_bias, number * 2 * self.config.width, self.config.width
        query, heads = query[:, None] * (width // len(bias)) ** -0.5, (len(bias), -1)
        remembered = torch.stack([frame[..., start : start + 2 * width] for frame in memory.frames], 1)
        query, keys, values = (part.unflatten(-1, heads) for part in (query, *remembered.chunk(2, -1)))
        scores = (query * keys).sum(-1) + bias.flip(1).T[:, None]  # (B, M, patches, heads)
        age = torch.arange(self.config.context - 1, -1, -1, device=query.device)
        none = (age >= memory.filled[:, None])[:, :, None, None]
        return (scores.masked_fill(none, float("-inf")).softmax(1)[..., None] * values).sum(1).flatten(2)

    def _moved(self, codes: Tensor, coarse: Tensor, recent: Tensor) -> Tensor:
        """:class:`Motion` of the last two frames (B, 2, H, W)."""
        padded = F.pad(codes, (1, 1, 1, 1), value=self.config.codes + 1)
        seen = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # (B, 2, H, W, 3, 3)
        change = _looked_up(self._motion, seen.permute(0, 2, 3, 1, 4, 5).flatten(3))
        change = change + self._coarse(coarse.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        add = self._kernel.add_gated if self._kernel else transformer.add_gated
        return self.dynamics.motion.after_first(change, coarse, recent, add)

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


def _table(embedding: Tensor, weights: Tensor) -> Tensor:
    """What a layer makes of each code at each place: (K, dim), (places, out, dim) -> (places, K, out)."""
    return embedding @ weights.transpose(1, 2)


def _looked_up(table: Tensor, codes: Tensor) -> Tensor:
    """The sum over places of a table's entries: (places, K, out), (…, places) int64 -> (…, out)."""
    places, size, _ = table.shape
    numbers = codes + size * torch.arange(places, device=codes.device)
    return F.embedding_bag(numbers.flatten(0, -2), table.flatten(0, 1), mode="sum").unflatten(0, codes.shape[:-1])
