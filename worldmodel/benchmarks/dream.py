"""What a dream costs, all at once and part by part, and what the VQ-VAE does alone."""

import torch
from torch import Tensor

from worldmodel.benchmarks.limits import flops_of
from worldmodel.benchmarks.settings import Settings, clip
from worldmodel.benchmarks.timing import Contestant, Section, on_threads, race
from worldmodel.world_model import WorldModel

FRAMES = 8  # in a run of a small batch
CODEC_BATCHES = (1, 32)


class Dreams:
    """B dreams of random actions that go on for as long as they are asked to."""

    def __init__(self, world: WorldModel, batch: int) -> None:
        frames, actions = clip(world)
        self.world, self.batch = world, batch
        self.state = world.start(frames.expand(batch, *frames.shape), actions.expand(batch, -1))
        self.generators = [torch.Generator().manual_seed(number) for number in range(batch)]
        self.steps = max(1, FRAMES // batch)  # of one run
        self.frames = self.steps * batch
        self.imagine(world.dynamics.config.context)  # so that the memory is full

    def imagine(self, steps: int = 0) -> Tensor:
        """Go on for some steps, by default those of a run, and return the last codes (B, H, W)."""
        for _ in range(steps or self.steps):
            step = self.world.step(self.state, self._actions(), self._uniforms())
            self.state = step.state
        return step.codes

    def show(self) -> None:
        """The same, with each frame decoded when it has been imagined."""
        for _ in range(self.steps):
            self.world.decode(self.imagine(1))

    def parts(self) -> list[Contestant]:
        """What a step is made of, with the decoder behind it: each part over and over, from where the dreams are."""
        rollout, device = self.world.rollout, self.world.device
        actions, uniforms = self._actions().to(device), self._uniforms().to(device)
        condition = rollout.look(self.state, actions)[1].condition

        def look() -> None:
            for _ in range(self.steps):
                rollout.look(self.state, actions)

        def draw() -> None:
            for _ in range(self.steps):
                rollout.draw(condition, uniforms)

        def draw_in_torch() -> None:
            for _ in range(self.steps):
                rollout.dynamics.wavefront.sample_in_torch(condition, uniforms)

        def decode() -> None:
            for _ in range(self.steps):
                self.world.decode(self.state.codes[:, 1])

        costs = self.flops()
        parts = {"look": look, "draw": draw, "draw, in torch": draw_in_torch, "decode": decode}
        return [
            Contestant(
                f"batch {self.batch}: {name}",
                part,
                self.frames,
                flops=costs[name.partition(",")[0]],
                dtype=torch.float32 if "draw" in name else self.world.dtype,
            )
            for name, part in parts.items()
        ]

    @torch.no_grad()
    def flops(self) -> dict[str, int]:
        """Of the parts of a frame, as the networks' own layers would do them."""
        dynamics, codes = self.world.dynamics, self.state.codes[:1, 1:]
        outlook = dynamics.outlook(codes, self.state.actions[:1, -1:])
        return {
            "look": flops_of(lambda: dynamics.outlook(codes, self.state.actions[:1, -1:])),
            "draw": flops_of(lambda: dynamics.wavefront(codes[:, 0], outlook.condition[:, 0])),
            "decode": flops_of(lambda: self.world.vqvae.decode(codes[:, 0])),
        }

    def _actions(self) -> Tensor:
        return torch.randint(len(self.world.action_names), (self.batch,), generator=self.generators[0])

    def _uniforms(self) -> Tensor:
        return self.world.uniforms(self.generators)


def dream(settings: Settings) -> Section:
    """Imagine and decode, a batch of dreams at a time: the whole, its parts, and the whole on several threads."""
    contestants = []
    for batch in settings.batches:
        dreams = Dreams(settings.world, batch)
        whole = sum(dreams.flops().values())
        contestants.append(Contestant(f"batch {batch}", dreams.show, dreams.frames, "frame", whole, dreams.world.dtype))
        contestants += dreams.parts()
    if settings.threads > 1 and settings.world.device.type == "cpu":
        contestants += _on_several(settings, dreams)
    height, width = settings.world.dynamics.config.grid
    remark = f"a frame is {height * width} codes drawn and then decoded; one thread unless said"
    return Section(race(contestants, settings.rounds, settings.watch), [remark])


def _on_several(settings: Settings, dreams: Dreams) -> list[Contestant]:
    """The same dreams with torch's own threads, and shared out among threads that do not wait for each other."""
    world, number = settings.world, settings.threads
    shared = Dreams(WorldModel(world.vqvae, world.dynamics, world.action_names, world.run, number), dreams.batch)

    def within() -> None:
        with on_threads(number):
            dreams.show()

    return [
        Contestant(f"batch {dreams.batch}, {number} threads in torch", within, dreams.frames),
        Contestant(f"batch {dreams.batch}, {number} threads of the world's", shared.show, dreams.frames),
    ]


def codec(settings: Settings) -> Section:
    """Encode and decode real frames with the VQ-VAE, one at a time and in batches."""
    world, contestants = settings.world, []
    for batch in CODEC_BATCHES:
        frames = clip(world)[0].repeat(batch, 1, 1, 1)[:batch]
        codes = world.vqvae.encode(frames.to(world.device))

        @torch.no_grad()
        def encode(frames: Tensor = frames) -> None:
            world.vqvae.encode(frames.to(world.device))

        def decode(codes: Tensor = codes) -> None:
            world.decode(codes)

        costs = flops_of(encode) / batch, flops_of(lambda codes=codes: world.vqvae.decode(codes)) / batch
        for part, flops, dtype in zip((encode, decode), costs, (torch.float32, world.dtype), strict=True):
            contestants.append(Contestant(f"{part.__name__}, batch {batch}", part, batch, "frame", flops, dtype))
    return Section(race(contestants, settings.rounds, settings.watch))
