"""A few codes for a whole picture: ``python -m worldmodel.experiments.global_codes {train,evaluate}``.

The two-stage model of the first paper's section 4.2 and Figure 5. A first VQ-VAE makes a grid of codes of a picture; a
second one, :class:`GlobalCodes`, makes three codes of that grid. What the three hold is seen by drawing pictures that
have them, and measured by how many bits the grid takes when they are known, when they are another picture's, and when
there are none.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import checkpoint, media
from worldmodel.episodes.encode import encode, encoded
from worldmodel.episodes.segments import split, spread
from worldmodel.episodes.store import EpisodeStore
from worldmodel.experiments.global_codes.model import GlobalCodes, GlobalCodesConfig
from worldmodel.files import check_folder, write_atomically
from worldmodel.images.dataset import PictureBatches
from worldmodel.images.pictures import FramePictures
from worldmodel.metrics import interval, psnr
from worldmodel.models.quantizers.nearest import perplexity
from worldmodel.models.vqvae import VQVAE
from worldmodel.training import TrainConfig, fit, pick_device

BATCH = 64
WATCHED = 512  # held-out pictures that it is measured on while it trains
SHOWN = 8  # pictures beside each other
DRAWS = 3  # rows drawn from the same latents


def train(
    store: str,
    vqvae: str,
    run: str,
    model: GlobalCodesConfig = GlobalCodesConfig(),
    train: TrainConfig = TrainConfig(),
    batch: int = 32,
) -> None:
    """Train a second VQ-VAE on the codes that a first one gives a store's frames; an existing run is continued.

    The frames are encoded first, once, and kept beside the store. Every tenth episode is held out. The same with
    ``--model.latents 0`` is the decoder alone, which ``evaluate`` compares with.

    Args:
        store: folder of recorded episodes.
        vqvae: run folder of the first VQ-VAE; a copy goes into this run, which is then whole.
        run: folder to write checkpoints, metrics and pictures into.
        model: sizes; codes, grid and dim are those of the data.
        train: length and speed.
        batch: pictures in a batch.
    """
    folder, origin = Path(run).absolute(), Path(vqvae)
    data = {"store": store, "vqvae": vqvae, "batch": batch}
    checkpoint.check_choices(folder, "global_codes", train, data)  # before anything is encoded
    codes = encoded(EpisodeStore(Path(store).absolute()), origin, pick_device(train))
    learnt, held_out = split(codes)
    first = checkpoint.load_vqvae(origin)
    model = replace(
        model,
        codes=first.quantizer.config.codes,
        dim=first.quantizer.config.dim,
        grid=codes.schema.observation_shape,
    )
    torch.manual_seed(train.seed)
    network = GlobalCodes(model, first.quantizer.codebook)
    checkpoint.adopt(folder, origin)
    checkpoint.begin(folder, "global_codes", model, train, {**data, **asdict(codes.schema)})
    batches = PictureBatches(FramePictures([(codes, learnt)]), batch, train.seed)
    unseen = FramePictures([(codes, held_out)])
    watched = gather(unseen, spread(len(unseen), WATCHED))

    def evaluate(network: nn.Module, step: int) -> dict[str, float]:
        device = next(network.parameters()).device
        pictures, shown = watched.to(device), spread(len(watched), SHOWN)
        latents = latents_of(network, pictures)
        films = [decoded(first.to(device), part) for part in (pictures[shown], draw(network, latents[shown], seed=0))]
        media.write(folder / "pictures" / f"{step:07d}.png", media.grid(torch.stack(films).numpy())[None], scale=1)
        return {
            "bits_per_code": float(bits(network, pictures, latents).mean()),
            "bits_per_code_shuffled": float(bits(network, pictures, another(latents)).mean()),
            **{f"perplexity_{number}": value for number, value in enumerate(use(latents, model)["perplexity"])},
        }

    fit(network, lambda *place: batches(*place).long(), evaluate, train, folder)


def evaluate(
    run: str,
    store: str,
    out: str,
    without: str = "",
    frames: int = 2048,
    drawn: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Measure what the latents of a second VQ-VAE hold of the frames that training held out.

    The folder ``out`` gets scores.json, and reconstructions.png: held-out frames, what the first VQ-VAE makes of all
    their codes, and below several pictures drawn from the latents alone, with other chance in each row. Intervals are
    of 95 %, over episodes.

    Args:
        run: its run folder.
        store: folder of recorded episodes.
        out: folder to write.
        without: run folder of one trained with --model.latents 0, to compare with.
        frames: held-out ones to measure bits on, evenly spread.
        drawn: of them, to draw again and compare with the frame.
        temperature: of what is drawn.
        seed: of the same.
        device: cpu or cuda.
        threads: of torch on the CPU.
    """
    settings = {name: value for name, value in locals().items() if name not in ("out", "device", "threads")}
    if min(frames, drawn, threads) < 1:
        raise ValueError("--frames, --drawn and --threads must be 1 or more")
    check_folder(Path(out))
    torch.set_num_threads(threads)
    place = checkpoint.check_device(device)
    network = checkpoint.load_global_codes(Path(run)).to(place)
    alone = load_without(without, run, network)
    first, recorded = checkpoint.load_vqvae(Path(run) / "vqvae").to(place), EpisodeStore(store)
    check_grid(first, network, recorded, run)
    codes = encoded(recorded, Path(run) / "vqvae", place)
    unseen, originals = (FramePictures([(part, [entry]) for entry in split(codes)[1]]) for part in (codes, recorded))
    numbers = spread(len(unseen), frames)
    pictures, episodes = gather(unseen, numbers).to(place), torch.from_numpy(unseen.labels[numbers])
    latents = latents_of(network, pictures)

    surprise = {"true": bits(network, pictures, latents), "shuffled": bits(network, pictures, another(latents))}
    if alone:
        surprise["none"] = bits(alone.to(place), pictures, latents[:, :0])
    size = pictures[0].numel()
    scores: dict[str, Any] = {
        "settings": settings,
        "frames": len(numbers),
        "held_out_episodes": len(episodes.unique()),
        "bits_per_code": {name: interval(part, episodes) for name, part in surprise.items()},
        "bits_per_frame": {
            "latents": network.config.bits,
            **{name: size * float(part.mean()) for name, part in surprise.items()},
            "latents and true": network.config.bits + size * float(surprise["true"].mean()),
            "first VQ-VAE's codes": size * math.log2(network.config.codes),
        },
        "bits_per_frame_saved": {
            name: interval(size * (part - surprise["true"]), episodes)
            for name, part in surprise.items()
            if name != "true"
        },
        "latents": use(latents, network.config),
    }
    some = spread(len(numbers), drawn)
    truth = gather(originals, numbers[some])
    remade = {
        "first VQ-VAE": pictures[some],
        "true": draw(network, latents[some], seed, temperature),
        "shuffled": draw(network, another(latents)[some], seed, temperature),
    }
    scores["psnr"] = {
        name: interval(psnr(decoded(first, part), truth), episodes[some]) for name, part in remade.items()
    }

    shown = spread(len(some), SHOWN)
    rows = [draw(network, latents[some][shown], seed + number, temperature) for number in range(DRAWS)]
    films = [truth[shown], *(decoded(first, part) for part in [pictures[some][shown], *rows])]
    folder = Path(out)
    media.write(folder / "reconstructions.png", media.grid(torch.stack(films).numpy())[None], scale=2)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2).encode())
    print(json.dumps({name: part for name, part in scores.items() if name != "settings"}, indent=2))
    print(f"wrote {folder / 'reconstructions.png'} and scores.json")


def gather(pictures: FramePictures, numbers: np.ndarray) -> Tensor:
    """Pictures of these numbers, (N, H, W, 3) uint8 if they are frames and (N, H, W) int64 if they are codes."""
    found = torch.from_numpy(pictures.read(numbers))
    return found if found.dtype == torch.uint8 else found.long()


@torch.no_grad()
def latents_of(network: GlobalCodes, pictures: Tensor) -> Tensor:
    """Codes (N, H, W) -> latents (N, latents)."""
    return torch.cat([network.encode(part) for part in pictures.split(BATCH)])


@torch.no_grad()
def bits(network: GlobalCodes, pictures: Tensor, latents: Tensor) -> Tensor:
    """Bits per code of codes (N, H, W) told latents (N, latents): (N,), on the CPU."""
    parts = zip(pictures.split(BATCH), latents.split(BATCH), strict=True)
    return torch.cat([network.bits(*part) for part in parts]).cpu()


def another(latents: Tensor) -> Tensor:
    """The latents of other pictures, half of them all further on: of another episode, unless one has most of them."""
    return latents.roll(len(latents) // 2, 0)


def draw(network: GlobalCodes, latents: Tensor, seed: int, temperature: float = 1.0) -> Tensor:
    """Codes (N, H, W) drawn from latents (N, latents); the same for the same seed."""
    uniforms = torch.rand(len(latents), *network.config.grid, generator=torch.Generator().manual_seed(seed))
    parts = zip(latents.split(BATCH), uniforms.to(latents.device).split(BATCH), strict=True)
    return torch.cat([network.sample(*part, temperature) for part in parts])


@torch.no_grad()
def decoded(first: VQVAE, pictures: Tensor) -> Tensor:
    """Codes (N, H, W) -> frames uint8, on the CPU."""
    return torch.cat([first.decode(part).cpu() for part in pictures.split(BATCH)])


def use(latents: Tensor, model: GlobalCodesConfig) -> dict[str, Any]:
    """How many codes of each codebook, and how many combinations, (N, latents) hold; perplexity is 2 to the entropy."""
    counts = [torch.bincount(column, minlength=model.quantizer.codes).float() for column in latents.T.cpu()]
    return {
        "perplexity": [float(perplexity(part)) for part in counts],
        "codes_used": [int((part > 0).sum()) for part in counts],
        "combinations": len(set(map(tuple, latents.tolist()))),
    }


def load_without(without: str, run: str, network: GlobalCodes) -> GlobalCodes | None:
    """The net that is told nothing, if there is one to compare with.

    Raises:
        ValueError: if it has latents, or predicts other codes.
    """
    if not without:
        return None
    alone = checkpoint.load_global_codes(Path(without))
    if alone.config.latents:
        raise ValueError(
            f"--without {without} must be trained with --model.latents 0, it has {alone.config.latents} latents"
        )
    if checkpoint.digest(Path(without) / "vqvae") != checkpoint.digest(Path(run) / "vqvae"):
        raise ValueError(f"--without {without} predicts the codes of another VQ-VAE than {run}; train one on its codes")
    if alone.config.grid != network.config.grid:
        raise ValueError(
            f"--without {without} knows pictures of {alone.config.grid} codes, {run} of {network.config.grid}"
        )
    return alone


def check_grid(first: VQVAE, network: GlobalCodes, recorded: EpisodeStore, run: str) -> None:
    """Raise a ValueError if a store's frames give another grid of codes than a run was trained on."""
    grid = encode(first, np.zeros((1, *recorded.schema.observation_shape), np.uint8)).shape[1:]
    if grid != network.config.grid:
        raise ValueError(
            f"{run} knows pictures of {' by '.join(map(str, network.config.grid))} codes, those of {recorded.path} "
            f"have {' by '.join(map(str, grid))}; give a store with frames of the size it was trained on"
        )
