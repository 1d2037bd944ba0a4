"""Compare evaluated translation models: ``python -m worldmodel.experiments.translation table``."""

import json
from pathlib import Path
from typing import Any

from worldmodel.files import check_folder, write_atomically
from worldmodel.train_config import RUN_SETTINGS

SIZES = ("embed_dim", "vocab_size", "encoder_layers", "decoder_layers", "predictor_layers")
SIZES += ("predicted_fraction", "steps", "optimizer", "learning_rate", "batch_tokens", "num_pairs", "split")
OLD_RUNS = {"optimizer": "adamw", "predicted_fraction": 0.0}  # settings that they lack
COLUMNS = {  # heading: the place of its number in scores.json, and the decimals shown
    "BLEU": (("bleu", "score"), 1),
    "lower-cased": (("bleu_lowercase", "score"), 1),
    "chrF": (("chrf", "score"), 1),
    "true latents": (("latents", "bleu_true_latents"), 1),
    "shuffled": (("latents", "bleu_shuffled_latents"), 1),
    "accuracy": (("latents", "predictor_accuracy"), 3),
    "perplexity": (("latents", "perplexity"), 0),
    "latency/ms": (("latency_ms", "mean"), 1),
    "speed-up": (("speedup",), 2),
}


def table(scores: str, out: str) -> None:
    """Compare translation models in a table with a row for each kind of model, over its seeds.

    The folder ``out`` gets table.txt, the printed table with mean ± standard deviation, and table.json with every
    number. Runs with the same settings, apart from the seed, share a row; sizes and numbers of steps in which others
    of its kind differ are named in it.

    Args:
        scores: comma-separated scores.json files, or folders that evaluate wrote.
        out: folder to write.
    """
    from worldmodel.tables import align_columns

    check_folder(Path(out))
    paths = [Path(name) / "scores.json" if Path(name).is_dir() else Path(name) for name in scores.split(",")]
    found = [read_scores(path) for path in paths]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for label, one in zip(label_systems(found), found, strict=True):
        rows.setdefault((label, json.dumps(_settings_of(one), sort_keys=True)), []).append(one)
    cells = [["model", "runs", *COLUMNS]]
    results = []
    for (label, _), runs in rows.items():
        row = {heading: _column_stats(runs, keys) for heading, (keys, _) in COLUMNS.items()}
        shown = [_format(row[heading], decimals) for heading, (_, decimals) in COLUMNS.items()]
        cells.append([label, str(len(runs)), *shown])
        results.append({"model": label, "seeds": [run["train"]["seed"] for run in runs], **row})
    text = align_columns(cells, {0})
    print(text)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "table.txt", f"{text}\n".encode())
    write_atomically(folder / "table.json", f"{json.dumps(results, indent=2)}\n".encode())


def read_scores(path: Path) -> dict[str, Any]:
    """Read the scores.json of an evaluation.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or of another program.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; write it with the program evaluate")
    try:
        found = json.loads(path.read_text("utf-8"))
        describe_system(found)
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be the scores.json of a translation model: {error!r}") from error


def describe_system(scores: dict[str, Any]) -> str:
    """Return a short name of an evaluated model, from its settings without the seed."""
    model, beam = scores["model"], scores.get("settings", {}).get("beam", 1)
    if scores["kind"] == "translation_teacher":
        depths = f"{model['encoder_layers']}+{model['decoder_layers']} layers"
        return f"autoregressive, {depths}, {f'beam {beam}' if beam > 1 else 'greedy'}"
    quantizer = model["quantizer"]
    update = {"loss": "loss", "ema": "hard EM", "soft_em": f"soft EM m={quantizer['num_samples']}"}[quantizer["update"]]
    parts = [
        update if quantizer["kind"] == "nearest" else quantizer["kind"],
        f"n_c={model['num_downsamples']}",
        f"K={quantizer['codebook_size']}",
    ]
    defaults = {"latent_length": "end_symbol", "word_dropout": 0.0, "word_shuffle": 0.0}
    parts += [f"{name} {model[name]}" for name, usual in defaults.items() if model[name] != usual]
    return ", ".join(parts) + (" + distillation" if scores["data"].get("distilled") else "")


def label_systems(found: list[dict[str, Any]]) -> list[str]:
    """Return names of models that tell them apart, from their scores or the configurations of their runs."""
    kinds = {one["kind"]: [other for other in found if other["kind"] == one["kind"]] for one in found}
    return [describe_system(one) + describe_sizes(one, kinds[one["kind"]]) for one in found]


def describe_sizes(scores: dict[str, Any], peers: list[dict[str, Any]]) -> str:
    """Return the sizes and lengths of training of a model that not all of its peers have, as text to append."""
    mine, others = _sizes_of(scores), [_sizes_of(other) for other in peers]
    differing = [name for name in mine if any(other[name] != mine[name] for other in others)]
    return "".join(f", {name} {mine[name]}" for name in differing)


def _sizes_of(scores: dict[str, Any]) -> dict[str, Any]:
    model = scores["model"]
    split = {"split": scores.get("settings", {}).get("split")}
    sizes = {**OLD_RUNS, **model.get("transformer", {}), **model, **scores["train"], **scores["data"], **split}
    if scores["kind"] == "translation_teacher":  # its depths are in its name
        sizes = {**sizes, "encoder_layers": None, "decoder_layers": None}
    return {name: sizes.get(name) for name in SIZES}


def _settings_of(scores: dict[str, Any]) -> dict[str, Any]:
    """Return everything that two runs of one system have in common."""
    model = {name: value for name, value in scores["model"].items() if name not in SIZES}
    train = {name: value for name, value in scores["train"].items() if name not in (*RUN_SETTINGS, *SIZES)}
    data = {name: value for name, value in scores["data"].items() if name not in ("corpus", "source", "target")}
    distilled = bool(data.pop("distilled", ""))
    return {"model": model, "train": train, "data": data, "distilled": distilled, **_sizes_of(scores)}


def _column_stats(runs: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, float] | None:
    """Return statistics over runs of the number at nested keys, or None if a run lacks it."""
    import torch

    from worldmodel.stats import descriptive_stats

    values: list[Any] = runs
    for key in keys:
        values = [value.get(key) if value else None for value in values]
    return None if None in values else descriptive_stats(torch.tensor(values))


def _format(stats: dict[str, float] | None, decimals: int) -> str:
    if stats is None:
        return ""
    spread = f" ± {stats['deviation']:.{decimals}f}" if stats["deviation"] else ""
    return f"{stats['mean']:.{decimals}f}{spread}"
