"""Measure a world on held-out episodes: ``python -m worldmodel.evaluate --store stores/doom`` writes a page."""

import json
from pathlib import Path

import torch

from worldmodel import checkpoint, config, media
from worldmodel.codes import encoded
from worldmodel.data.store import EpisodeStore, write_atomically
from worldmodel.data.windows import split, spread
from worldmodel.evaluation import page, plots
from worldmodel.evaluation.clips import CONTEXT, dream, held_out_clips
from worldmodel.evaluation.drift import drift
from worldmodel.evaluation.heads import heads
from worldmodel.evaluation.judges import inverse_dynamics, real_pairs
from worldmodel.evaluation.openloop import by_horizon, open_loop, worth_of_actions
from worldmodel.evaluation.prediction import BATCH, predict
from worldmodel.scores import vqvae_scores
from worldmodel.world import DEFAULT, WorldModel

SHOWN = 12  # frames in the picture of reconstructions


def evaluate(
    store: str,
    world: str = DEFAULT,
    vqvae: str = "",
    blind: str = "",
    frames: int = 2048,
    stretches: int = 256,
    length: int = 16,
    clips: int = 256,
    samples: int = 2,
    horizon: int = 50,
    long: int = 32,
    long_frames: int = 1000,
    episodes: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    out: str = "evaluation",
    device: str = "cpu",
    threads: int = 0,
) -> None:
    """Measure a world on the episodes of a store that training held out.

    The folder ``out`` gets scores.json, index.html, one page with every number, plot and strip, and the pictures as
    files. What is measured: reconstruction; bits per code with true, shuffled and no actions, beside baselines; dreams
    from six real frames under the recorded actions, beside those frames; whether the actions can be read off the
    dream, and what random ones cost; how far long dreams drift from real video; rewards and ends. Each part's exact
    definition stands in the docstring of worldmodel/evaluation/.

    Args:
        store: folder of recorded episodes.
        world: a shipped world's name, or the run folder of a prior.
        vqvae: run folder of a VQ-VAE, to measure that alone.
        blind: run folder of a prior trained with --model.context 0, for the baseline that knows no past.
        frames: to reconstruct.
        stretches: to predict.
        length: frames of such a stretch.
        clips: to dream and compare with what came.
        samples: dreams of each clip.
        horizon: frames of such a dream.
        long: dreams that drift is measured on; 0 for none.
        long_frames: of each.
        episodes: held-out ones that rewards and ends are foretold in.
        temperature: of all dreams.
        seed: of the choice of stretches and clips, of the nets that judge, and of the dreams.
        out: folder to write.
        device: cpu or cuda.
        threads: of torch on the CPU; 0 leaves torch's own choice.
    """
    if length <= CONTEXT or stretches < BATCH or min(clips, samples, horizon) < 1:
        raise ValueError(
            f"--length must be more than {CONTEXT}, --stretches {BATCH} or more, --clips, --samples and --horizon 1 or "
            f"more, got {length}, {stretches}, {clips}, {samples} and {horizon}"
        )
    torch.set_num_threads(threads or torch.get_num_threads())
    recorded, folder = EpisodeStore(store), Path(out)
    model = None if vqvae else WorldModel.load(world, device)
    if model:
        model.check_actions(recorded.schema.action_names)
    network = model.vqvae if model else checkpoint.load_vqvae(Path(vqvae)).to(checkpoint.check_device(device))
    _, held_out = split(recorded)
    shown = [recorded.observations(number, at, 1)[0].copy() for number, at in spread(held_out, frames)]
    originals = torch.stack([torch.from_numpy(picture) for picture in shown])
    reconstructions, reconstruction = vqvae_scores(network, originals)
    settings = {
        "store": store,
        "world": world,
        "vqvae": vqvae,
        "blind": blind,
        "context": CONTEXT,
        "stretches": stretches,
        "length": length,
        "clips": clips,
        "samples": samples,
        "horizon": horizon,
        "long": long,
        "long_frames": long_frames,
        "temperature": temperature,
        "seed": seed,
    }
    scores = {"settings": settings, "held_out_episodes": len(held_out), "reconstruction": reconstruction}
    every = slice(None, None, max(1, len(originals) // SHOWN))
    parts = [part[every][:SHOWN] for part in (originals, reconstructions)]
    pictures, figures, milestones = {"reconstruction": plots.pairs_of_rows(*(part[None] for part in parts))}, {}, []

    if model:
        codes = encoded(recorded, model.run / "vqvae", torch.device(device))
        scores["bits_per_code"], scores["flip_probability"] = predict(model, codes, blind, stretches, length, seed)

        chosen = held_out_clips(recorded, clips, horizon, seed)
        dreams = dream(model, chosen, chosen.to_take, samples, temperature, seed)
        measured = open_loop(model, chosen, dreams)
        scores["open_loop"] = {
            measure: {name: by_horizon(values) for name, values in rows.items()} for measure, rows in measured.items()
        }
        figures["open_loop"] = [
            plots.svg(plots.curves(measured["psnr"], "PSNR (dB)")),
            plots.svg(plots.curves(measured["ssim"], "SSIM")),
        ]
        pictures["strips"] = plots.strips(model, recorded, temperature, seed)
        pictures["worst"] = plots.worst(model, chosen, dreams, measured["psnr"]["dream"])

        pairs = real_pairs(model, recorded, seed)
        scores["delta_psnr"] = worth_of_actions(model, chosen, temperature, seed)
        scores["actions"] = inverse_dynamics(model, pairs, chosen, dreams, seed=seed)
        figures["confusion"] = plots.svg(plots.matrices(scores["actions"]["confusion"], model.action_names))
        if long:
            scores["drift"], walked = drift(
                model, recorded, codes, pairs.shown, dreams, long, long_frames, temperature=temperature, seed=seed
            )
            pictures["long"], milestones = plots.milestones(model, walked)
        scores["heads"] = heads(model, codes, episodes)
        figures["reliability"] = plots.svg(plots.reliability(scores["heads"]["termination"]["calibration"]))

    folder.mkdir(parents=True, exist_ok=True)
    named = {f"strip_{action}": picture for action, picture in pictures.get("strips", {}).items()}
    for name, picture in {**{name: picture for name, picture in pictures.items() if name != "strips"}, **named}.items():
        media.write(folder / f"{name}.png", picture[None], scale=1)
    write_atomically(folder / "scores.json", (json.dumps(scores, indent=2) + "\n").encode())
    title = f"The VQ-VAE {vqvae}" if vqvae else f"The world {world}"
    page.write(
        folder / "index.html", title=title, scores=scores, plots=figures, pictures=pictures, milestones=milestones
    )
    print(json.dumps({name: part for name, part in scores.items() if name != "settings"}, indent=2))
    print(f"wrote {folder}/index.html and scores.json")


if __name__ == "__main__":
    config.run(evaluate)
