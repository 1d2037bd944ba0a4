"""Evaluate a second VQ-VAE: ``python -m worldmodel.experiments.global_codes evaluate``."""

import json
import math
from pathlib import Path
from typing import Any

from worldmodel import media
from worldmodel.checks import check_seed, check_temperature
from worldmodel.episodes.store import EpisodeStore
from worldmodel.files import check_folder, write_atomically

NUM_SAMPLE_ROWS = 3  # rows sampled from the same latents


def evaluate(
    run: str,
    store: str,
    out: str,
    baseline: str = "",
    frames: int = 2048,
    psnr_frames: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Evaluate how much the latents of a second VQ-VAE tell about held-out frames.

    The folder ``out`` receives scores.json and reconstructions.png: held-out frames, their reconstructions by the first
    VQ-VAE, and below several rows of images sampled from the latents alone. Intervals are 95 % intervals over episodes.

    Args:
        run: run folder of the second VQ-VAE.
        store: folder of recorded episodes.
        out: folder to write.
        baseline: run folder of a model trained with --model.num_latents 0, to compare with.
        frames: maximum number of evenly spaced held-out frames on which bits per code are evaluated.
        psnr_frames: maximum number of held-out frames to sample again from their latents and compare by PSNR.
        temperature: sampling temperature, 0 or more.
        seed: random seed of the sampled images.
        device: device to evaluate on, cpu or cuda.
        threads: number of CPU threads of PyTorch.
    """
    settings = {name: value for name, value in locals().items() if name not in ("out", "device", "threads")}
    import torch

    from worldmodel import checkpoint
    from worldmodel.episodes.encode import encode_store
    from worldmodel.episodes.segments import split_held_out
    from worldmodel.experiments.global_codes.measures import (
        NUM_IMAGES_SHOWN,
        bits_per_code,
        check_grid,
        decode_frames,
        encode_latents,
        latent_usage,
        load_global_codes,
        load_unconditional,
        read_images,
        sample_codes,
        shuffle_latents,
    )
    from worldmodel.images.sources import FrameImages
    from worldmodel.metrics import psnr
    from worldmodel.models.precision import check_device
    from worldmodel.splits import evenly_spaced
    from worldmodel.stats import bootstrap_interval

    if min(frames, psnr_frames, threads) < 1:
        raise ValueError("--frames, --psnr_frames and --threads must be 1 or more")
    check_temperature(temperature)
    check_seed(seed)
    check_folder(Path(out))
    torch.set_num_threads(threads)
    torch_device = check_device(device)
    network = load_global_codes(run).to(torch_device)
    unconditional = load_unconditional(baseline, run, network)
    first, recorded = checkpoint.load_vqvae(Path(run) / "vqvae").to(torch_device), EpisodeStore(store)
    check_grid(first, network, recorded, run)
    encoded = encode_store(recorded, Path(run) / "vqvae", torch_device)
    code_source, frame_source = (
        FrameImages([(part, [entry]) for entry in split_held_out(encoded)[1]]) for part in (encoded, recorded)
    )
    indices = evenly_spaced(len(code_source), frames)
    codes, episodes = read_images(code_source, indices).to(torch_device), torch.from_numpy(code_source.labels[indices])
    latents = encode_latents(network, codes)

    bits = {
        "true": bits_per_code(network, codes, latents),
        "shuffled": bits_per_code(network, codes, shuffle_latents(latents)),
    }
    if unconditional:
        bits["none"] = bits_per_code(unconditional.to(torch_device), codes, latents[:, :0])
    size, latent_bits = codes[0].numel(), network.config.bits_per_image
    scores: dict[str, Any] = {
        "settings": settings,
        "frames": len(indices),
        "held_out_episodes": len(episodes.unique()),
        "bits_per_code": {name: bootstrap_interval(part, episodes) for name, part in bits.items()},
        "bits_per_frame": {
            "latents": latent_bits,
            **{name: size * float(part.mean()) for name, part in bits.items()},
            "latents_and_true": latent_bits + size * float(bits["true"].mean()),
            "first_vqvae_codes": size * math.log2(network.config.codebook_size),
        },
        "bits_per_frame_saved": {
            name: bootstrap_interval(size * (part - bits["true"]), episodes)
            for name, part in bits.items()
            if name != "true"
        },
        "latents": latent_usage(latents, network.config),
    }
    chosen = evenly_spaced(len(indices), psnr_frames)
    truth = read_images(frame_source, indices[chosen])
    reconstructions = {
        "first_vqvae": codes[chosen],
        "true": sample_codes(network, latents[chosen], seed, temperature),
        "shuffled": sample_codes(network, shuffle_latents(latents)[chosen], seed, temperature),
    }
    scores["psnr"] = {
        name: bootstrap_interval(psnr(decode_frames(first, part), truth), episodes[chosen])
        for name, part in reconstructions.items()
    }

    shown = evenly_spaced(len(chosen), NUM_IMAGES_SHOWN)
    rows = [sample_codes(network, latents[chosen][shown], seed + row, temperature) for row in range(NUM_SAMPLE_ROWS)]
    images = [truth[shown], *(decode_frames(first, part) for part in [codes[chosen][shown], *rows])]
    folder = Path(out)
    media.write(folder / "reconstructions.png", media.tile(torch.stack(images).numpy())[None], scale=2)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2).encode())
    print(json.dumps({name: part for name, part in scores.items() if name != "settings"}, indent=2))
    print(f"wrote {folder / 'reconstructions.png'} and scores.json")
