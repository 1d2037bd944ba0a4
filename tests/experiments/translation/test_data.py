"""Parallel text, subwords and batches, and what is refused."""

import gzip

import numpy as np
import pytest

from tests.experiments.translation.tiny import sentences, write_corpus
from worldmodel.experiments.translation.batches import TokenBatches, cut_by_tokens, group_by_length
from worldmodel.experiments.translation.corpus import Pairs, encode_pairs, read_pairs, read_training_pairs
from worldmodel.experiments.translation.subwords import EOS, PAD, Subwords

SUBWORDS = Subwords.train([line for pair in sentences() for line in pair], 300)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


@pytest.mark.parametrize("zipped", [False, True])
def test_two_files_are_read_line_by_line_and_some_are_held_out(tmp_path, zipped):
    paths = [tmp_path / f"text.{name}{'.gz' * zipped}" for name in ("en", "de")]
    for side, path in enumerate(paths):
        with (gzip.open if zipped else open)(path, "wt", encoding="utf-8") as file:
            file.write("".join(f"  {pair[side]} \r\n" for pair in sentences()))
    pairs, held_out = read_training_pairs("", str(paths[0]), str(paths[1]), "en-de")
    assert len(pairs.sources) == 18 and len(held_out.sources) == 2
    assert sorted(zip(*pairs, strict=True)) + sorted(zip(*held_out, strict=True)) != []
    assert {*zip(*pairs, strict=True), *zip(*held_out, strict=True)} == set(sentences())


def test_no_sentence_that_is_held_out_is_trained_on(tmp_path):
    for side, path in enumerate(("a.en", "a.de")):
        (tmp_path / path).write_text("".join(f"{pair[side]}\n" for pair in sentences() * 2))
    pairs, held_out = read_training_pairs("", str(tmp_path / "a.en"), str(tmp_path / "a.de"), "en-de")
    assert len(held_out.sources) == 4 and len(pairs.sources) == 2 * (len(sentences()) - len(set(held_out.sources)))
    assert not set(pairs.sources) & set(held_out.sources) and not set(pairs.targets) & set(held_out.targets)


def test_a_folder_has_splits_and_languages(corpus):
    pairs, held_out = read_training_pairs(str(corpus), "", "", "en-de")
    assert list(zip(*pairs, strict=True)) == sentences() and len(held_out.sources) == 8
    backwards = read_pairs(str(corpus), "", "", "de-en", "val")
    assert backwards == Pairs(held_out.targets, held_out.sources)


def test_distilled_targets_replace_those_to_train_on_only(corpus):
    distilled = corpus / "distilled.de"
    distilled.write_text("".join(f"Satz {number}\n" for number in range(20)))
    pairs, held_out = read_training_pairs(str(corpus), "", "", "en-de", str(distilled))
    assert pairs.targets[19] == "Satz 19" and held_out == read_pairs(str(corpus), "", "", "en-de", "val")
    files = [str(corpus / f"train.{name}") for name in ("en", "de")]
    pairs, held_out = read_training_pairs("", *files, "en-de", str(distilled))
    rows = [[pair[0] for pair in sentences()].index(line) for line in pairs.sources]
    assert pairs.targets == [f"Satz {row}" for row in rows]
    assert set(zip(*held_out, strict=True)) <= set(sentences())


BAD = {
    r"train\.de has 19 lines and .*corpus.*|has 20 lines and .*train\.de has 19": lambda corpus: (
        corpus / "train.de"
    ).write_text("x\n" * 19),
    r"holds no train\.en or train\.en\.gz": lambda corpus: (corpus / "train.en").unlink(),
    r"must be UTF-8 text": lambda corpus: (corpus / "train.en").write_bytes(b"\xff\xfe\n" * 20),
    r"must hold two or more sentence pairs": lambda corpus: [
        (corpus / f"val.{name}").write_text("") for name in ("en", "de")
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_text_is_refused(corpus, message):
    BAD[message](corpus)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_training_pairs(str(corpus), "", "", "en-de")


def test_it_must_be_clear_which_text_to_read(corpus):
    for names in (("", "", ""), ("", "a", ""), (str(corpus), "a", "b")):
        with pytest.raises(ValueError, match="either --corpus, or both --source and --target"):
            read_pairs(*names, "en-de", "train")
    with pytest.raises(ValueError, match="such as en-de, got german"):
        read_pairs(str(corpus), "", "", "german", "train")
    (corpus / "short.de").write_text("ein\n")
    with pytest.raises(ValueError, match=r"short\.de has 1 lines and .* has 20"):
        read_training_pairs(str(corpus), "", "", "en-de", str(corpus / "short.de"))


def test_empty_and_long_pairs_are_left_out_and_counted(capsys):
    pairs = Pairs(["a man", "", "the tree", "a dog"], ["ein Mann", "der", "der Baum " * 50, ""])
    sources, targets = encode_pairs(SUBWORDS, pairs, 40)
    assert len(sources) == len(targets) == 1 and sources[0][-1] == EOS
    assert "4 sentence pairs: 2 with an empty side, 1 of more than 40 subwords" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["a man sees", "Привет, мир", "你好 世界", "مرحبا", "🙂 ½"])
def test_text_of_any_script_comes_back(text):
    encoded = SUBWORDS.encode(text)
    assert encoded[-1] == EOS and max(encoded) < len(SUBWORDS) == 300
    assert SUBWORDS.decode([*encoded, PAD, 7]) == text.replace("½", "1⁄2")  # sentencepiece normalizes by NFKC


def test_subwords_are_trained_alike_and_exactly_as_many_as_asked():
    lines = [line for pair in sentences() for line in pair]
    assert Subwords.train(lines, 290).model == Subwords.train(lines, 290).model
    assert len(Subwords.train(lines, 290)) == 290
    for size, reason in ((5000, "Vocabulary size too high"), (10, "")):
        with pytest.raises(ValueError, match=f"vocab_size {size} does not fit the sentences: .*{reason}"):
            Subwords.train(lines, size)


def test_damaged_or_missing_subwords_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no subwords\.model"):
        Subwords.load(tmp_path)
    (tmp_path / "subwords.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"subwords\.model is damaged"):
        Subwords.load(tmp_path)


def lines(count: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [[*range(4, 4 + int(length)), EOS] for length in random.integers(1, 12, count)]


def test_an_epoch_has_every_pair_once_in_batches_of_limited_size():
    sources, targets = [[4 + n, EOS] for n in range(100)], lines(100)
    batches = TokenBatches(sources, targets, 60, seed=1)
    per_epoch = len(batches.bounds) - 1
    for epoch in range(2):
        seen = [batches(epoch * per_epoch + number) for number in range(per_epoch)]
        assert sorted(int(row[0]) for batch in seen for row in batch.source) == list(range(4, 104))
        assert all(max(batch.source.numel(), batch.target.numel()) <= 60 for batch in seen)
        for batch in seen:
            for source, target in zip(*batch, strict=True):
                assert target[target != PAD].tolist() == targets[int(source[0]) - 4]
    orders = [[int(batches(step).source[0, 0]) for step in range(per_epoch)] for _ in range(2)]
    assert (
        orders[0] == orders[1] != [int(TokenBatches(sources, targets, 60, 2)(n).source[0, 0]) for n in range(per_epoch)]
    )


def test_a_batch_depends_on_its_step_only():
    one, other = (TokenBatches(lines(50), lines(50), 40, seed=0) for _ in range(2))
    later = [one(step) for step in range(25)][20]
    for part, same in zip(later, other(20), strict=True):
        assert part.equal(same)
    parts = [one(20, rank, 2) for rank in range(2)]
    assert sum(len(part.source) for part in parts) == len(later.source)


def test_sentences_that_fit_no_batch_are_refused():
    with pytest.raises(ValueError, match=r"--batch_tokens is 8, and the longest sentence has 12 subwords"):
        cut_by_tokens(np.array([3, 12]), 8)
    with pytest.raises(ValueError, match="no pair of sentences is left to train on"):
        TokenBatches([], [], 8, 0)
    assert group_by_length([9, 2, 2, 30, 3], 10) == [[1, 2, 4], [0], [3]] and group_by_length([], 10) == []
