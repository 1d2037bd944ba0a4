"""Train translation models: ``python -m worldmodel.experiments.translation {train-teacher,train}``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.experiments.translation.config import LatentConfig, TransformerConfig
from worldmodel.train_config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from worldmodel.experiments.translation.model import LatentTranslator
    from worldmodel.experiments.translation.teacher import Teacher

NUM_EVAL_SENTENCES = 200  # held-out pairs evaluated during training


def train_teacher(
    run: str,
    corpus: str = "",
    source: str = "",
    target: str = "",
    languages: str = "en-de",
    model: TransformerConfig = TransformerConfig(),
    train: TrainConfig = TrainConfig(),
    batch_tokens: int = 4096,
    max_length: int = 128,
) -> None:
    """Train an autoregressive Transformer, teacher and baseline of the latent models; an existing run is resumed.

    Args:
        run: folder to write checkpoints, subwords and metrics into.
        corpus: folder with train.en, train.de, val.en and val.de (or other languages), plain or .gz, as in Multi30K.
        source: file of source sentences, one a line, plain or .gz, instead of a corpus folder; some are held out.
        target: file of their translations, line by line.
        languages: source and target languages in the names of the corpus folder's files.
        model: architecture of the Transformer.
        train: training settings.
        batch_tokens: maximum number of subwords per batch, with padding, in the longer of the two languages.
        max_length: maximum number of subwords of a training sentence; longer pairs are left out.
    """
    from worldmodel.experiments.translation.teacher import Teacher

    data = {"corpus": corpus, "source": source, "target": target, "languages": languages, "distilled": ""}
    data |= {"batch_tokens": batch_tokens, "max_length": max_length}
    _train("translation_teacher", Teacher, Path(run).absolute(), data, model, train)


def train(
    run: str,
    corpus: str = "",
    source: str = "",
    target: str = "",
    languages: str = "en-de",
    distilled: str = "",
    model: LatentConfig = LatentConfig(),
    train: TrainConfig = TrainConfig(),
    batch_tokens: int = 4096,
    max_length: int = 128,
) -> None:
    """Train a translation model with discrete latents; an existing run is resumed.

    Args:
        run: folder to write checkpoints, subwords and metrics into.
        corpus: folder with train.en, train.de, val.en and val.de (or other languages), plain or .gz, as in Multi30K.
        source: file of source sentences, one a line, plain or .gz, instead of a corpus folder; some are held out.
        target: file of their translations, line by line.
        languages: source and target languages in the names of the corpus folder's files.
        distilled: file written by distill, with a translation of each training source, to train on instead.
        model: architecture and losses.
        train: training settings.
        batch_tokens: maximum number of subwords per batch, with padding, in the longer of the two languages.
        max_length: maximum number of subwords of a training sentence; longer pairs are left out.
    """
    from worldmodel.experiments.translation.model import LatentTranslator

    warmup = max(model.quantizer_warmup_steps, model.predictor_warmup_steps)
    if warmup >= train.steps:
        print(f"the warm-ups cover all {train.steps} steps: the predictor will not be trained")
    data = {"corpus": corpus, "source": source, "target": target, "languages": languages, "distilled": distilled}
    data |= {"batch_tokens": batch_tokens, "max_length": max_length}
    _train("translation", LatentTranslator, Path(run).absolute(), data, model, train)


def _train(
    kind: str,
    build: "Callable[[Any], Teacher | LatentTranslator]",
    run: Path,
    data: dict[str, Any],
    model: TransformerConfig | LatentConfig,
    train: TrainConfig,
) -> None:
    """Train the network of either program."""
    import torch

    from worldmodel import checkpoint
    from worldmodel.experiments.translation.batches import TextBatch, TokenBatches, pad
    from worldmodel.experiments.translation.corpus import encode_pairs, read_training_pairs
    from worldmodel.experiments.translation.model import LatentTranslator
    from worldmodel.experiments.translation.scores import bleu
    from worldmodel.experiments.translation.subwords import Subwords
    from worldmodel.experiments.translation.translator import Translator
    from worldmodel.splits import evenly_spaced
    from worldmodel.training import fit

    checkpoint.check_choices(run, kind, train, data)
    texts = ("corpus", "source", "target", "languages", "distilled")
    pairs, held_out = read_training_pairs(*(data[name] for name in texts))
    sizes, begun = model.transformer if isinstance(model, LatentConfig) else model, checkpoint.is_begun(run)
    subwords = Subwords.load(run) if begun else Subwords.train([*pairs.sources, *pairs.targets], sizes.vocab_size)
    batches = TokenBatches(*encode_pairs(subwords, pairs, data["max_length"]), data["batch_tokens"], train.seed)
    sources, targets = encode_pairs(subwords, held_out, data["max_length"])
    if not sources:
        raise ValueError(
            f"no held-out sentence pair has {data['max_length']} subwords or fewer; give a larger --max_length"
        )
    rows = evenly_spaced(len(sources), NUM_EVAL_SENTENCES).tolist()
    eval_batch = TextBatch(*(pad([part[row] for row in rows]) for part in (sources, targets)))
    references = [subwords.decode(targets[row]) for row in rows]
    torch.manual_seed(train.seed)
    network = build(model)
    checkpoint.begin_run(run, kind, model, train, {**data, "num_pairs": len(batches.sources)})
    if not begun:
        subwords.save(run)

    @torch.no_grad()
    def evaluate(network: "Teacher | LatentTranslator", step: int) -> dict[str, float]:
        translator = Translator(network, subwords, run)
        batch = TextBatch(*(part.to(translator.device) for part in eval_batch))
        _, metrics = network(batch)
        words = {"bleu": network.translate(batch.source)}
        if isinstance(network, LatentTranslator):
            encoded = network.encode_source(batch.source)
            words["bleu_true_latents"] = network.decode(*network.encode(batch), encoded.decoder)
        scores = {name: bleu([subwords.decode(line) for line in lines], references) for name, lines in words.items()}
        return {**{name: float(value) for name, value in metrics.items()}, **scores}

    fit(network, batches, evaluate, train, run)
