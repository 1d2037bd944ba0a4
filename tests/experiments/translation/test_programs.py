"""Translation: every program on twenty sentences, resuming, and what is refused."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import train_config
from tests.experiments.translation.tiny import LATENTS, SIZES, sentences, write_corpus
from worldmodel import checkpoint, cli, tensor_io
from worldmodel.evaluation import plots
from worldmodel.experiments.translation import latents, translator
from worldmodel.experiments.translation.corpus import Pairs, read_pairs
from worldmodel.experiments.translation.distill import distill
from worldmodel.experiments.translation.evaluate import evaluate
from worldmodel.experiments.translation.latents import mutual_information, read_latents, score_latents
from worldmodel.experiments.translation.model import LatentTranslator
from worldmodel.experiments.translation.plot import plot
from worldmodel.experiments.translation.release import release
from worldmodel.experiments.translation.scores import compare_translations, score_translations
from worldmodel.experiments.translation.subwords import Subwords
from worldmodel.experiments.translation.table import _settings_of, describe_system, label_systems, table
from worldmodel.experiments.translation.train import train, train_teacher
from worldmodel.experiments.translation.translate import translate
from worldmodel.experiments.translation.translator import Translator
from worldmodel.models.quantizers.config import QuantizerConfig

BATCH_TOKENS = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "teacher"
    settings = replace(train_config(150), learning_rate=0.01, log_every=50, evaluate_every=150, decay_fraction=0.5)
    train_teacher(str(run), str(corpus), model=replace(SIZES, dropout=0.0), train=settings, batch_tokens=200)
    return run


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "soft_em"
    train(str(folder), str(corpus), model=LATENTS, train=train_config(4), batch_tokens=BATCH_TOKENS)
    return folder


def test_a_start_without_weights_leaves_no_subwords_to_the_next(corpus, run, tmp_path):
    new = tmp_path / "run"
    new.mkdir()
    (new / "subwords.model").write_bytes(b"")
    train(str(new), str(corpus), model=LATENTS, train=train_config(1), batch_tokens=BATCH_TOKENS)
    assert (new / "subwords.model").read_bytes() == (run / "subwords.model").read_bytes()
    (new / "subwords.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"subwords\.model is damaged \(it is empty\)"):
        Translator.load(str(new))


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
def test_a_teacher_learns_twenty_sentences(teacher, corpus):
    last = metrics(teacher)
    assert last["part"] == "held_out" and last["bits_per_subword"] < 0.5 and last["bleu"] > 60
    sources, targets = zip(*sentences(), strict=True)
    assert Translator.load(teacher).translate([*sources, "", "  "], beam=2) == [*targets, "", ""]


def test_training_with_latents_measures_them(run):
    last = metrics(run)
    assert {"bits_per_subword", "bits_per_latent", "perplexity", "bleu", "bleu_true_latents"} <= set(last)


@pytest.mark.parametrize("program", [train_teacher, train])
@pytest.mark.slow
def test_training_that_was_stopped_goes_on_as_if_it_had_not(corpus, tmp_path, program):
    noise = {"word_dropout": 0.2, "word_shuffle": 0.5, "predicted_fraction": 0.5}
    latents = replace(LATENTS, quantizer_warmup_steps=1, predictor_warmup_steps=2, **noise)
    model = SIZES if program is train_teacher else latents
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder, steps in ((whole, 6), (parted, 3), (parted, 6)):
        settings = replace(train_config(steps), decay_fraction=0.0)
        program(str(folder), str(corpus), model=model, train=settings, batch_tokens=BATCH_TOKENS)
    assert tensor_io.digest(whole) == tensor_io.digest(parted)
    assert (whole / "subwords.model").read_bytes() == (parted / "subwords.model").read_bytes()
    with pytest.raises(ValueError, match="was begun with batch_tokens 60, got 61"):
        program(str(parted), str(corpus), model=model, train=settings, batch_tokens=61)


@pytest.mark.parametrize("kind", ["ema", "loss", "gumbel", "semhash"])
@pytest.mark.slow
def test_every_quantizer_trains(corpus, tmp_path, kind):
    choice = {"update": kind} if kind in ("ema", "loss") else {"kind": kind}
    quantizer = QuantizerConfig(codebook_size=8, code_dim=16, **choice)
    model = replace(LATENTS, quantizer=quantizer, latent_length="twice_source", predicted_fraction=0.5)
    train(str(tmp_path / kind), str(corpus), model=model, train=train_config(2), batch_tokens=BATCH_TOKENS)
    assert "bits_per_latent" in metrics(tmp_path / kind)


@pytest.mark.slow
def test_distillation_writes_a_line_for_each_training_source(teacher, corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "distilled.de"
    monkeypatch.setattr("worldmodel.experiments.translation.distill.CHUNK_LINES", 8)
    real = Translator.translate
    calls = []

    def interrupted(self, lines, beam):
        calls.append(len(lines))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, lines, beam)

    monkeypatch.setattr(Translator, "translate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(str(teacher), str(out), str(corpus), beam=2)
    assert not out.exists()
    other = tmp_path / "other.en"
    other.write_text("one man\n" * 9)
    distill(str(teacher), str(out), source=str(other), target=str(other), beam=2)
    assert calls == [8, 8, 8, 1], "another text does not continue what was begun"
    for path in (out, other):
        path.unlink()
    distill(str(teacher), str(out), str(corpus), beam=2)
    assert calls[4:] == [8, 4]  # the first eight are not translated again
    lines = out.read_text("utf-8").splitlines()
    sources = (corpus / "train.en").read_text().splitlines()
    assert lines == Translator.load(teacher).translate(sources, 2) and [*tmp_path.iterdir()] == [out]
    with pytest.raises(ValueError, match="already exists"):
        distill(str(teacher), str(out), str(corpus))
    folder = tmp_path / "run"
    train(str(folder), str(corpus), distilled=str(out), model=LATENTS, train=train_config(1), batch_tokens=BATCH_TOKENS)
    with pytest.raises(ValueError, match=r"was begun with distilled .*distilled\.de, got"):
        train(str(folder), str(corpus), model=LATENTS, train=train_config(1), batch_tokens=BATCH_TOKENS)


def say(monkeypatch, text: bytes, *arguments: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    cli.run({"translate": translate}, ["translate", *arguments])


@pytest.mark.slow
def test_standard_input_is_translated_line_by_line(teacher, run, monkeypatch, capsys):
    (one, translated), (other, translated_other) = sentences()[:2]
    say(monkeypatch, f"{one}\n\n{other}".encode(), "--run", str(teacher), "--beam", "4")
    assert capsys.readouterr().out == f"{translated}\n\n{translated_other}\n"
    strange = "Привет, мир\n你好\n" + "a man " * 400 + "\n"
    say(monkeypatch, strange.encode(), "--run", str(run))
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 3
    assert "subwords is cut off after 255: a man a man" in captured.err


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (
            ["--run", "RUN", "--beam", "4"],
            b"a man\n",
            "has latents, which are decoded greedily; --beam must be 1, got 4",
        ),
        (["--run", "RUN", "--threads", "0"], b"a man\n", "threads must be a whole number from 1 to 1024, got 0"),
        (["--run", "RUN", "--beam", "0"], b"a man\n", "--beam must be 1 or more, got 0"),
        (["--run", "RUN"], b"\xff\xff\n", "can't decode byte 0xff"),
        (["--run", "nowhere"], b"a man\n", "unknown translator 'nowhere'"),
    ],
)
def test_bad_input_is_one_line_on_standard_error(run, monkeypatch, capsys, arguments, text, message):
    with pytest.raises(SystemExit) as stopped:
        say(monkeypatch, text, *(str(run) if part == "RUN" else part for part in arguments))
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.count("\n") == 1 and message in error


def test_a_run_of_another_kind_does_not_translate(vqvae_run):
    with pytest.raises(ValueError, match="must be the run of a translation, it is that of a vqvae"):
        Translator.load(vqvae_run)


def test_no_sentence_is_alone_when_latents_of_another_are_needed(run, monkeypatch):
    monkeypatch.setattr(latents, "BATCH_TOKENS", 12)
    network, subwords = LatentTranslator(LATENTS), Subwords.load(run)
    pairs = Pairs(["a man"] * 5 + ["a man " * 20], ["ein Mann"] * 6)
    groups = [rows for rows, _ in latents._batches(network, subwords, pairs)]
    assert sorted(row for rows in groups for row in rows) == [*range(6)] and all(len(rows) > 1 for rows in groups)


def test_the_translator_that_ships_translates_at_once(monkeypatch, capsys):
    say(monkeypatch, b"Tom is happy.\n\n")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Tom") and second == ""
    folder = translator.SHIPPED / "en-de"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6


@pytest.mark.slow
def test_a_shipped_translator_is_small_and_names_no_folder(teacher, corpus, tmp_path, monkeypatch, capsys):
    release(str(teacher), str(tmp_path / "en-de"))
    monkeypatch.setattr(translator, "SHIPPED", tmp_path)
    source, target = sentences()[5]
    assert Translator.load().translate([source]) == [target]
    assert str(corpus) not in (tmp_path / "en-de" / "config.yaml").read_text()
    weights = tensor_io.read_tensors(tmp_path / "en-de" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    with pytest.raises(ValueError, match="already exists"):
        release(str(teacher), str(tmp_path / "en-de"))
    unfinished = shutil.copytree(teacher, tmp_path / "unfinished")
    text = (teacher / "config.yaml").read_text()
    (unfinished / "config.yaml").write_text(text.replace("steps: 150", "steps: 151"))
    with pytest.raises(ValueError, match="is at step 150 of 151; finish its training first"):
        release(str(unfinished), str(tmp_path / "other"))


@pytest.mark.slow
def test_an_evaluation_that_cannot_end_does_not_begin(teacher, run, corpus, tmp_path):
    for settings, message in (
        ({"beam": 4}, "which are decoded greedily; --beam must be 1, got 4"),
        ({"baseline": str(run)}, "which are decoded greedily; --baseline_beam must be 1, got 4"),
        ({"baseline": str(teacher), "baseline_beam": 0}, "--baseline_beam must be 1 or more, got 0"),
        ({"baseline": str(teacher), "latency": False}, "leave one of --baseline and --latency false out"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(str(run), str(tmp_path / "out"), str(corpus), **settings)
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no pair of sentences with words on both sides"):
        evaluate(str(run), str(tmp_path / "out"), source=str(tmp_path / "a"), target=str(tmp_path / "b"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_evaluation_measures_translations_latents_and_time(teacher, run, corpus, tmp_path, capsys):
    evaluate(str(teacher), str(tmp_path / "teacher"), str(corpus), beam=2)
    scores = json.loads((tmp_path / "teacher" / "scores.json").read_text())
    assert scores["sentences"] == 8 and scores["bleu"]["score"] > 60 and "tok:13a" in scores["bleu"]["signature"]
    assert "case:lc" in scores["bleu_lowercase"]["signature"] and "latents" not in scores
    translations = tmp_path / "teacher" / "translations.txt"
    evaluate(str(run), str(tmp_path / "latent"), str(corpus), compare=str(translations), baseline=str(teacher), beam=1)
    scores = json.loads((tmp_path / "latent" / "scores.json").read_text())
    assert scores["compared"]["other"]["score"] > scores["compared"]["this"]["score"]
    assert scores["speedup"] > 0 and scores["latency_ms"]["low"] <= scores["latency_ms"]["mean"]
    measured = scores["latents"]
    assert {"bleu_true_latents", "bleu_shuffled_latents", "perplexity", "last_latent", "sentences"} <= set(measured)
    assert measured["mutual_information"]["sentences"] == 20  # those of the training split
    assert 0 <= measured["predictor_accuracy"] <= 1
    table(f"{tmp_path / 'teacher'},{tmp_path / 'latent' / 'scores.json'}", str(tmp_path / "table"))
    text = (tmp_path / "table" / "table.txt").read_text().splitlines()
    assert [line.split("  ")[0] for line in text[1:]] == [
        "autoregressive, 2+2 layers, beam 2",
        "soft EM m=3, n_c=2, K=8",
    ]
    with pytest.raises(ValueError, match="has 8 lines, and the test set 20 sentences"):
        evaluate(str(run), str(tmp_path / "x"), str(corpus), split="train", compare=str(translations))


def test_a_table_has_a_row_for_each_model_over_its_seeds(tmp_path, capsys):
    for seed, score in ((0, 30.0), (1, 32.0)):
        found = {
            "settings": {"beam": 1}, "kind": "translation_teacher", "data": {}, "train": {"seed": seed},
            "model": {"encoder_layers": 4, "decoder_layers": 1}, "bleu": {"score": score},
        }  # fmt: skip
        (tmp_path / f"{seed}.json").write_text(json.dumps(found))
    table(f"{tmp_path / '0.json'},{tmp_path / '1.json'}", str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(rows) == 1 and rows[0]["seeds"] == [0, 1] and rows[0]["BLEU"]["mean"] == 31.0
    assert "31.0 ± 1.4" in (tmp_path / "out" / "table.txt").read_text() and rows[0]["chrF"] is None
    longer = {**found, "train": {"seed": 0, "steps": 9}}
    (tmp_path / "longer.json").write_text(json.dumps(longer))
    table(f"{tmp_path / '0.json'},{tmp_path / 'longer.json'}", str(tmp_path / "out"))
    names = [row["model"] for row in json.loads((tmp_path / "out" / "table.json").read_text())]
    assert names == ["autoregressive, 4+1 layers, greedy, steps None", "autoregressive, 4+1 layers, greedy, steps 9"]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json must be the scores\.json of a translation model"):
        table(str(tmp_path / "bad.json"), str(tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match="write it with the program evaluate"):
        table(str(tmp_path / "none.json"), str(tmp_path / "out"))


def test_a_plot_has_a_curve_for_each_run_and_a_color_for_each_model(teacher, run, tmp_path, monkeypatch):
    other = tmp_path / "seed1"
    shutil.copytree(run, other)
    drawn = []
    monkeypatch.setattr(plots, "save_plot", lambda figure, path: drawn.append((figure, path)))
    plot(f"{run},{other}", str(tmp_path / "curves.png"))
    ((figure, path),) = drawn
    lines = figure.axes[0].lines
    measured = [row for row in checkpoint.read_metrics(run) if row["part"] == "held_out"]
    for line in lines:
        assert line.get_xdata().tolist() == [row["step"] for row in measured]
        assert line.get_ydata().tolist() == [row["bleu_true_latents"] for row in measured]
    assert len(lines) == 2 and lines[0].get_color() == lines[1].get_color()
    assert path == tmp_path / "curves.png" and len(figure.axes[0].get_legend().texts) == 1
    for name, changes in (("longer", {"steps: 4": "steps: 5"}), ("hard", {"update: soft_em": "update: ema"})):
        shutil.copytree(run, tmp_path / name)
        text = (run / "config.yaml").read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / name / "config.yaml").write_text(text)
    plot(f"{run},{tmp_path / 'longer'},{other},{tmp_path / 'hard'}", str(tmp_path / "curves.png"))
    colors = [line.get_color() for line in drawn[1][0].axes[0].lines]
    assert colors[0] == colors[2] and len(set(colors)) == 3
    (tmp_path / "hard" / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="has not been evaluated yet"):
        plot(str(tmp_path / "hard"), str(tmp_path / "curves.png"))
    with pytest.raises(ValueError, match="must be the run of a translation model with latents"):
        plot(str(teacher), str(tmp_path / "curves.png"))
    with pytest.raises(ValueError, match="must end in"):
        plot(str(run), str(tmp_path / "curves.txt"))


def test_models_are_named_after_what_differs():
    model = {
        "quantizer": {"kind": "semhash", "update": "ema", "num_samples": 10, "codebook_size": 256},
        "num_downsamples": 3, "latent_length": "end_symbol", "word_dropout": 0.0, "word_shuffle": 0.5,
    }  # fmt: skip
    found = {"settings": {"beam": 1}, "kind": "translation", "model": model, "data": {"distilled": "a.de"}}
    assert describe_system(found) == "semhash, n_c=3, K=256, word_shuffle 0.5 + distillation"
    old = {**found, "train": {"steps": 5}}  # before there was a choice of optimizers
    same = {**old, "model": {**model, "predicted_fraction": 0.0}, "train": {"steps": 5, "optimizer": "adamw"}}
    other = {**old, "model": {**model, "predicted_fraction": 0.5}, "train": {"steps": 5, "optimizer": "muon"}}
    assert _settings_of(old) == _settings_of(same) != _settings_of(other)
    ends = [", predicted_fraction 0.0, optimizer adamw"] * 2 + [", predicted_fraction 0.5, optimizer muon"]
    assert label_systems([old, same, other]) == [describe_system(found) + end for end in ends]


def test_scores_are_those_of_sacrebleu():
    references = ["Der Hund sieht den Baum .", "Ein Mann findet den Hund im Park ."]
    perfect = score_translations(references, references)
    assert perfect["bleu"]["score"] == pytest.approx(100) and perfect["chrf"]["score"] == pytest.approx(100)
    lower = [line.lower() for line in references]
    scores = score_translations(lower, references)
    assert scores["bleu"]["score"] < 60 and scores["bleu_lowercase"]["score"] == pytest.approx(100)
    test = compare_translations(references * 10, lower * 10, references * 10)
    assert test["p_value"] < 0.01 and test["this"]["score"] > test["other"]["score"]


def test_mutual_information_finds_the_words_of_a_latent(corpus):
    subwords = Subwords.train(["ja nein ja ja nein"] * 9, 268)
    size = max(len(subwords.encode(word)) - 1 for word in ("ja", "nein"))
    targets = ["ja", "nein"] * 10
    codes = [[1], [2]] * 10
    found = mutual_information(subwords, targets, codes, max(size, 8))
    assert found["mean_bits"] == pytest.approx(1.0)  # of two words that are equally frequent
    assert found["top_words"]["1"] == [{"word": "ja", "bits": pytest.approx(1.0), "count": 10}]
    same = mutual_information(subwords, targets, [[3]] * 20, max(size, 8))
    assert same["mean_bits"] == pytest.approx(0.0)


def test_latents_are_scored_over_all_sentences(run, corpus):
    found = Translator.load(run)
    network, subwords = found.network, found.subwords
    pairs = read_pairs(str(corpus), "", "", "en-de", "val")
    found_latents = read_latents(network, subwords, pairs)
    for row, line in enumerate(found_latents):  # in the order of the pairs, as each is alone
        alone = read_latents(network, subwords, pairs.select([row]))[0]
        assert (line.codes, line.correct, line.words) == (alone.codes, alone.correct, alone.words)
        assert len(line.correct) == len(line.codes) + 1  # and the end
        assert alone.shuffled_words == alone.words
    scores = score_latents(network, subwords, found_latents, pairs.targets)
    flat = [value for line in found_latents for value in line.correct]
    assert scores["predictor_accuracy"] == sum(flat) / len(flat)
    first = [line.correct[0] for line in found_latents]
    assert scores["predictor_accuracy_by_position"][0] == sum(first) / len(first)
    assert scores["last_latent"]["fraction_of_sentences"] >= 1 / 8 and scores["sentences"][0] == found_latents[0].codes
