"""Evaluate a second VQ-VAE: ``python -m worldmodel.experiments.global_codes evaluate``."""

import json
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
    import torch

    from worldmodel import checkpoint
    from worldmodel.episodes.encode import encode_store
    from worldmodel.episodes.segments import split_held_out
    from worldmodel.experiments.global_codes import measures
    from worldmodel.images.sources import FrameImages
    from worldmodel.models.precision import check_device, use_threads
    from worldmodel.splits import evenly_spaced

    if min(frames, psnr_frames) < 1:
        raise ValueError(f"--frames and --psnr_frames must be 1 or more, got {frames} and {psnr_frames}")
    check_temperature(temperature)
    check_seed(seed)
    check_folder(Path(out))
    use_threads(threads)
    torch_device = check_device(device)
    network = measures.load_global_codes(run).to(torch_device)
    unconditional = measures.load_unconditional(baseline, run, network)
    first, recorded = checkpoint.load_vqvae(Path(run) / "vqvae").to(torch_device), EpisodeStore(store)
    measures.check_grid(first, network, recorded, run)
    held_out = split_held_out(recorded)[1]
    encoded = encode_store(recorded, Path(run) / "vqvae", torch_device, entries=held_out)
    code_source, frame_source = (FrameImages([(part, [entry]) for entry in held_out]) for part in (encoded, recorded))
    indices = evenly_spaced(len(code_source), frames)
    codes = measures.read_images(code_source, indices).to(torch_device)
    latents, episodes = measures.encode_latents(network, codes), torch.from_numpy(code_source.labels[indices])
    some = evenly_spaced(len(indices), psnr_frames)
    truth = measures.read_images(frame_source, indices[some])
    sampling = {"temperature": temperature, "seed": seed}
    settings = {"run": run, "store": store, "baseline": baseline, "frames": frames, "psnr_frames": psnr_frames}
    scores: dict[str, Any] = {
        "settings": settings | sampling,
        "frames": len(indices),
        "held_out_episodes": len(episodes.unique()),
        **measures.score_bits(network, unconditional, codes, latents, episodes),
        "latents": measures.latent_usage(latents, network.config),
        "psnr": measures.score_psnr(network, first, codes[some], latents[some], truth, episodes[some], **sampling),
    }
    shown = evenly_spaced(len(some), measures.NUM_IMAGES_SHOWN)
    rows = [
        measures.sample_codes(network, latents[some][shown], seed + row, temperature) for row in range(NUM_SAMPLE_ROWS)
    ]
    images = [truth[shown], *(measures.decode_frames(first, part) for part in [codes[some][shown], *rows])]
    folder = Path(out)
    media.write(folder / "reconstructions.png", media.tile(torch.stack(images).numpy())[None], scale=2)
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2).encode())
    print(json.dumps({name: part for name, part in scores.items() if name != "settings"}, indent=2))
    print(f"wrote {folder / 'reconstructions.png'} and scores.json")
