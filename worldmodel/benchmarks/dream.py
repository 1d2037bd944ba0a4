"""Time of dreams, whole and by part, and of the VQ-VAE alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from worldmodel.benchmarks.limits import count_flops
from worldmodel.benchmarks.settings import Settings
from worldmodel.benchmarks.timing import Contestant, Section, race, use_threads
from worldmodel.world_model import WorldModel

FRAMES_PER_RUN = 8  # of all dreams; larger batches take one step
CODEC_BATCH_SIZES = (1, 32)


class Dreams:
    """A batch of dreams under random actions that can be continued endlessly."""

    def __init__(self, world: WorldModel, batch: int) -> None:
        frames, actions = world.clip()
        self.world, self.batch = world, batch
        self.state = world.start(frames.expand(batch, -1, -1, -1, -1), actions.expand(batch, -1))
        self.generators = [torch.Generator().manual_seed(number) for number in range(batch)]
        self.steps = max(1, FRAMES_PER_RUN // batch)  # per run
        self.frames = self.steps * batch
        self.imagine(world.dynamics.config.context_length)  # fills the context

    def imagine(self, steps: int = 0) -> Tensor:
        """Imagine some steps, by default those of a run, and return the last codes (B, H, W)."""
        for _ in range(steps or self.steps):
            step = self.world.step(self.state, self._actions(), self._uniforms())
            self.state = step.state
        return step.codes

    def imagine_and_decode(self) -> None:
        """Imagine the steps of a run and decode each frame."""
        for _ in range(self.steps):
            self.world.decode(self.imagine(1))

    def step_contestants(self) -> list[Contestant]:
        """Return contestants for the parts of a step and for decoding, all from the current state."""
        rollout, device = self.world.rollout, self.world.device
        actions, uniforms = self._actions().to(device), self._uniforms().to(device)
        condition = rollout.predict(self.state, actions)[1].condition

        calls = {
            "predict": lambda: rollout.predict(self.state, actions),
            "sample": lambda: rollout.sample_codes(condition, uniforms),
            "sample, in torch": lambda: rollout.dynamics.wavefront.sample_in_torch(condition, uniforms),
            "decode": lambda: self.world.decode(self.state.latest_codes),
        }

        def repeat(call: Callable[[], Any]) -> None:
            for _ in range(self.steps):
                call()

        contestants, costs = [], self.flops()
        for name, call in calls.items():
            work = (self.frames, "frame", costs[name.partition(",")[0]])
            dtype = torch.float32 if "sample" in name else self.world.dtype
            contestants.append(Contestant(f"batch {self.batch}: {name}", partial(repeat, call), *work, dtype))
        return contestants

    @torch.no_grad()
    def flops(self) -> dict[str, int]:
        """Return the FLOPs of the parts of a frame, as computed by the plain layers of the networks."""
        dynamics, codes = self.world.dynamics, self.state.codes[:1, 1:]
        prediction = dynamics.predict(codes, self.state.actions[:1, -1:])
        return {
            "predict": count_flops(lambda: dynamics.predict(codes, self.state.actions[:1, -1:])),
            "sample": count_flops(lambda: dynamics.wavefront(codes[:, 0], prediction.condition[:, 0])),
            "decode": count_flops(lambda: self.world.vqvae.decode(codes[:, 0])),
        }

    def _actions(self) -> Tensor:
        return torch.randint(len(self.world.action_names), (self.batch,), generator=self.generators[0])

    def _uniforms(self) -> Tensor:
        return self.world.uniforms(self.generators)


def dream(settings: Settings) -> Section:
    """Time imagining and decoding batches of dreams: the whole, its parts, and the whole on several threads."""
    contestants = []
    for batch in settings.batches:
        dreams = Dreams(settings.world, batch)
        work = (dreams.frames, "frame", sum(dreams.flops().values()), dreams.world.dtype)
        contestants.append(Contestant(f"batch {batch}", dreams.imagine_and_decode, *work))
        contestants += dreams.step_contestants()
    if settings.threads > 1 and settings.world.device.type == "cpu":
        contestants += _on_threads(settings, dreams)
    height, width = settings.world.dynamics.config.grid
    remark = f"a frame is {height * width} sampled codes, then decoded; on one thread unless stated"
    return Section(race(contestants, settings.rounds, settings.stopwatch), [remark])


def _on_threads(settings: Settings, dreams: Dreams) -> list[Contestant]:
    """Return contestants for the dreams on several threads of torch, and split among the threads of the world model."""
    world, number = settings.world, settings.threads
    threaded = WorldModel(world.vqvae, world.dynamics, world.action_names, world.run, number, world.precision)
    shared = Dreams(threaded, dreams.batch)

    def on_torch_threads() -> None:
        with use_threads(number):
            dreams.imagine_and_decode()

    name = f"batch {dreams.batch}, {number}"
    return [
        Contestant(f"{name} threads of torch", on_torch_threads, dreams.frames),
        Contestant(f"{name} threads of the world model", shared.imagine_and_decode, dreams.frames),
    ]


def codec(settings: Settings) -> Section:
    """Time encoding and decoding real frames with the VQ-VAE, one at a time and in batches."""
    world, contestants = settings.world, []
    for batch in CODEC_BATCH_SIZES:
        frames = world.clip()[0][0].repeat(batch, 1, 1, 1)[:batch]
        codes = world.vqvae.encode(frames.to(world.device))

        @torch.no_grad()
        def encode(frames: Tensor = frames) -> None:
            world.vqvae.encode(frames.to(world.device))

        def decode(codes: Tensor = codes) -> None:
            world.decode(codes)

        costs = count_flops(encode) / batch, count_flops(lambda codes=codes: world.vqvae.decode(codes)) / batch
        for part, flops, dtype in zip((encode, decode), costs, (torch.float32, world.dtype), strict=True):
            contestants.append(Contestant(f"{part.__name__}, batch {batch}", part, batch, "frame", flops, dtype))
    return Section(race(contestants, settings.rounds, settings.stopwatch))
