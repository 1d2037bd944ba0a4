"""Translation models: caches, causality, the parallel decoder, soft EM's targets, and independence of the batch."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.experiments.translation.tiny import LATENTS, SIZES, build_latent, build_teacher, random_batch
from worldmodel.experiments.translation.batches import TextBatch
from worldmodel.experiments.translation.config import LatentConfig, TransformerConfig
from worldmodel.experiments.translation.layers import causal_bias, embed, padding_bias, word_loss
from worldmodel.experiments.translation.model import _mask, _to_sequences, shuffle_words
from worldmodel.experiments.translation.subwords import BOS, EOS, PAD
from worldmodel.models.quantizers.config import QuantizerConfig

BATCH = random_batch([(5, 9), (7, 4), (3, 12)])


@pytest.mark.parametrize("kind", ["teacher", "predictor"])
def test_cached_steps_give_the_features_of_the_whole_sequence(kind):
    if kind == "teacher":
        network = build_teacher()
        decoder, embedding, source = network.decoder, network.embedding, network.encode_source(BATCH.source)
        symbols = torch.randint(4, SIZES.vocab_size, (3, 10))
    else:
        network = build_latent()
        decoder, embedding = network.predictor, network.code_embedding
        source, symbols = network.encode_source(BATCH.source).predictor, torch.randint(0, 8, (3, 10))
    whole, _ = decoder(embedding, symbols, source)
    past, parts = None, []
    for part in symbols.split([1, 3, 1, 5], 1):  # several symbols at a time also continue a cache
        features, past = decoder(embedding, part, source, past)
        parts.append(features)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_greedy_decoding_takes_the_most_likely_symbol_of_the_full_pass():
    network = build_teacher()
    translations = network.translate(BATCH.source)
    source = network.encode_source(BATCH.source)
    decoded = torch.tensor(translations)
    logits = network._logits(network.decoder(network.embedding, F.pad(decoded[:, :-1], (1, 0), value=BOS), source)[0])
    for row, line in enumerate(translations):
        length = min(line.index(EOS) + 1 if EOS in line else 99, 2 * int((BATCH.source[row] != PAD).sum()) + 10)
        assert logits[row].argmax(-1)[:length].tolist() == line[:length]


def test_a_word_depends_on_no_later_word():
    network = build_teacher()
    source = network.encode_source(BATCH.source)
    x = embed(network.embedding, BATCH.target).detach().requires_grad_()
    features, _ = network.decoder.layers(x, causal_bias(x.shape[1], 0, x.device), source)
    for position in range(x.shape[1]):
        (gradient,) = torch.autograd.grad(features[0, position, 0], x, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached[: position + 1].all() and not reached[position + 1 :].any()


def test_a_predicted_latent_depends_on_no_later_latent():
    network = build_latent()
    codes, _ = network.encode(BATCH)
    source = network.encode_source(BATCH.source).predictor
    logits = network.code_logits(codes, source)
    for position in range(codes.shape[1]):
        changed = codes.clone()
        changed[:, position] = (codes[:, position] + 1) % 8
        others = network.code_logits(changed, source)
        assert torch.equal(others[:, : position + 1], logits[:, : position + 1])
        assert not torch.allclose(others[0, position + 1], logits[0, position + 1])


def test_the_parallel_decoder_sees_targets_only_through_latents():
    network = build_latent().train()
    counts = network.count_latents(BATCH)
    source = network.encode_source(BATCH.source)
    seen = []
    handle = network.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    vectors = torch.randn(3, int(counts.max()), 16, requires_grad=True)
    features = network.decode_vectors(vectors, counts, source.decoder, torch.Generator())
    handle.remove()
    assert not seen  # no word is embedded, neither of the target nor one decoded before
    (gradient,) = torch.autograd.grad(features[2, 0, 0], vectors)
    assert (gradient[2].abs().sum(-1) > 0).all()  # every word sees every latent of its sentence, also later ones
    assert not gradient[:2].any()


def test_the_loss_has_no_path_from_targets_to_words_around_the_quantizer():
    network = build_latent()
    embedded = []

    def hook(module, inputs, output):
        output.retain_grad()
        embedded.append((inputs[0], output))

    network.embedding.register_forward_hook(hook)
    network.quantizer.forward = lambda rows, generator=None: type(
        "Quantized", (), {"vectors": rows.detach(), "codes": rows.new_zeros(len(rows), 1).long(),
                          "loss": rows.new_zeros(()), "counts": torch.ones(8), "samples": None}
    )()  # fmt: skip
    loss, _ = network(BATCH)
    loss.backward()
    gradients = {inputs.shape: output.grad for inputs, output in embedded}
    assert gradients[BATCH.source.shape].abs().sum() > 0  # the source is seen
    target = gradients[(3, 12)]
    assert target is None or not target.any()


def test_the_target_of_soft_em_is_the_average_of_its_samples():
    network = build_latent()
    counts = torch.tensor([2, 1])
    samples = torch.tensor([[[1, 1, 3], [0, 2, 2]], [[5, 5, 5], [8, 8, 8]]])  # (B, M, m); 8 is the end
    source = network.encode_source(BATCH.source[:2]).predictor
    logits = network.code_logits(samples[..., 0], source)
    nats, log_probs = network.predictor_nats(logits, samples, counts), logits.log_softmax(-1)
    by_hand = [
        -(2 * log_probs[0, 0, 1] + log_probs[0, 0, 3]) / 3,
        -(log_probs[0, 1, 0] + 2 * log_probs[0, 1, 2]) / 3,
        -log_probs[0, 2, 8],
        -log_probs[1, 0, 5],
        -log_probs[1, 1, 8],
    ]
    torch.testing.assert_close(nats, torch.stack(by_hand).mean())


def test_soft_em_trains_its_predictor_on_samples_and_hard_em_on_codes():
    hard = replace(LATENTS, quantizer=QuantizerConfig(codebook_size=8, code_dim=16))
    for config, training, num_samples in ((LATENTS, True, 3), (LATENTS, False, 1), (hard, True, 1)):
        network, quantized, given = build_latent(config=config).train(training), [], []
        network.quantizer.register_forward_hook(lambda *call, kept=quantized: kept.append(call[2]))
        network.predictor_nats = lambda logits, samples, _, kept=given: kept.append(samples) or logits.sum() * 0
        network(BATCH, torch.Generator().manual_seed(0))
        assert given[0].shape == (3, 3, num_samples)
        targets = quantized[0].codes if num_samples == 1 else quantized[0].samples[..., 0]  # (L, m)
        assert torch.equal(given[0][given[0] != network.end], targets.flatten())
        assert (given[0].amin(2) != given[0].amax(2)).any() == (num_samples > 1)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.9])
def test_a_fraction_of_latents_is_predicted(fraction):
    network = build_latent(config=replace(LATENTS, predicted_fraction=fraction))
    rows, counts = torch.randn(600, 16, 1), torch.tensor([400, 200])
    logits = torch.randn(2, 401, 9)
    logits[..., 8] = 9.0  # the end, which is no latent
    assert network.eval()._mix_in_predicted(rows, logits, counts, None) is rows
    mixed = network.train()._mix_in_predicted(rows, logits, counts, torch.Generator().manual_seed(0))
    codes = torch.cat([logits[0, :400, :8].argmax(-1), logits[1, :200, :8].argmax(-1)])
    predicted = (mixed == network.quantizer.decode(codes[:, None])).all(1)[:, 0]
    assert abs(predicted.float().mean() - fraction) < 0.07
    assert torch.equal(mixed[~predicted], rows[~predicted])


def test_the_decoder_is_trained_on_predicted_latents_once_the_predictor_is_trained():
    network = build_latent(config=replace(LATENTS, predicted_fraction=0.9, predictor_warmup_steps=1)).train()
    mixed, decoded = [], []
    mix, decode = network._mix_in_predicted, network.decode_vectors
    network._mix_in_predicted = lambda *given: mixed.append(mix(*given)) or mixed[-1]
    network.decode_vectors = lambda vectors, *given: decoded.append(vectors) or decode(vectors, *given)
    network(BATCH, torch.Generator().manual_seed(0))
    assert not mixed
    network(BATCH, torch.Generator().manual_seed(0))
    counts = network.count_latents(BATCH)
    assert torch.equal(decoded[1], _to_sequences(mixed[0][..., 0], counts, 0.0))


def test_words_do_not_train_the_codebook_of_nearest_codes():
    quantizer = QuantizerConfig(codebook_size=8, code_dim=16, update="loss", codebook_weight=0.0)
    network = build_latent(config=replace(LATENTS, predicted_fraction=0.5, quantizer=quantizer)).train()
    network(BATCH, torch.Generator().manual_seed(0))[0].backward()
    assert not network.quantizer.codebook.grad.any()


def test_an_encoder_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="predicted_fraction must be below 1"):
        replace(LATENTS, predicted_fraction=1.0)


def test_a_sentence_without_latents_is_empty_and_disturbs_no_other():
    network = build_latent()
    codes, counts = network.encode(BATCH)
    source = network.encode_source(BATCH.source).decoder
    whole = network.decode(codes, counts, source)
    counts[1] = 0
    assert network.decode(codes, counts, source) == [whole[0], [], whole[2]]


def test_the_convolutions_see_nothing_beyond_a_sentence():
    network = build_latent()
    counts = network.count_latents(BATCH)
    vectors = _to_sequences(network.encode_to_vectors(BATCH.target, counts)[..., 0], counts, 0.0)
    source = network.encode_source(BATCH.source).decoder
    features = network.decode_vectors(vectors, counts, source)
    for row, count in enumerate(counts.tolist()):
        target = BATCH.target[row][BATCH.target[row] != PAD][None]
        alone = network.encode_to_vectors(target, counts[row : row + 1])[..., 0]
        torch.testing.assert_close(alone, vectors[row, :count], atol=1e-5, rtol=1e-5)
        own = network.decode_vectors(alone[None], counts[row : row + 1], source.select(torch.tensor([row])))
        torch.testing.assert_close(own[0], features[row, : 4 * count], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", ["end_symbol", "twice_source"])
def test_a_sentence_is_encoded_and_translated_alike_in_every_batch(rule):
    network = build_latent(config=replace(LATENTS, latent_length=rule))
    codes, counts = network.encode(BATCH)
    together = network.translate(BATCH.source)
    for row, (source, target) in enumerate(zip(*BATCH, strict=True)):
        alone = TextBatch(source[source != PAD][None], target[target != PAD][None])
        own, count = network.encode(alone)
        assert count == counts[row] and own[0].tolist() == codes[row, : counts[row]].tolist()
        assert (codes[row, counts[row] :] == network.end).all()
        assert network.translate(alone.source)[0] == together[row]


def test_the_number_of_latents_follows_the_rule():
    network = build_latent()
    assert network.count_latents(BATCH).tolist() == [3, 1, 3]  # of 9, 4 and 12 subwords, four to a latent
    padded = build_latent(config=replace(LATENTS, latent_length="twice_source"))
    assert padded.count_latents(BATCH).tolist() == [3, 4, 3]  # of sources of 5, 7 and 3
    codes, counts = padded.predict(padded.encode_source(BATCH.source))
    assert counts.tolist() == [3, 4, 2] and codes[2].tolist()[2:] == [8, 8]  # and no more are predicted


def test_prediction_stops_at_the_end_symbol():
    network = build_latent()
    with torch.no_grad():
        network.code_embedding.weight[network.end] = (
            100
            * network.predictor(
                network.code_embedding,
                torch.full((1, 1), network.begin),
                network.encode_source(BATCH.source[:1]).predictor,
            )[0][0, 0]
        )
    codes, counts = network.predict(network.encode_source(BATCH.source[:1]))
    assert counts.tolist() == [0] and codes.shape == (1, 1)
    assert network.translate(BATCH.source[:1]) == [[]]


def test_beam_search_finds_what_greedy_decoding_misses():
    network = build_teacher(seed=3)
    greedy, beam = network.translate(BATCH.source), network.translate(BATCH.source, beam=8)

    @torch.no_grad()
    def score(line, row):
        line = line[: line.index(EOS) + 1] if EOS in line else line
        source = network.encode_source(BATCH.source[row : row + 1])
        symbols = torch.tensor([[BOS, *line[:-1]]])
        log_probs = network._logits(network.decoder(network.embedding, symbols, source)[0]).log_softmax(-1)[0]
        return float(log_probs.gather(1, torch.tensor(line)[:, None]).mean())

    scores = [(score(line, row), score(other, row)) for row, (line, other) in enumerate(zip(beam, greedy, strict=True))]
    assert all(found >= known - 1e-5 for found, known in scores) and any(
        found > known + 1e-3 for found, known in scores
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_best_sequence_of_all(seed):
    network, limit = build_teacher(), 4
    log_probs = torch.full((6, 6), -50.0)  # of the symbol after each; only EOS, 4 and 5 are ever written
    log_probs[:, [EOS, 4, 5]] = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)).log_softmax(1)

    def decoder(embedding, last, source, past):
        return F.one_hot(last, 6).float(), [(last, last)]

    network.decoder.forward = decoder
    network._logits = lambda features: features @ log_probs

    def score(line):
        return sum(float(log_probs[a, b]) for a, b in itertools.pairwise([BOS, *line])) / len(line)

    ended = [[*line, EOS] for n in range(limit) for line in itertools.product([4, 5], repeat=n)]
    best = max([*ended, *map(list, itertools.product([4, 5], repeat=limit))], key=score)
    found = network._beam_search(network.encode_source(BATCH.source[:1]), torch.tensor([limit]), beam=100)
    assert found[0].tolist() == best + [EOS] * (limit - len(best))


def test_a_beam_of_one_is_greedy():
    network = build_teacher()
    limits = 2 * (BATCH.source != PAD).sum(1) + 10
    found = network._beam_search(network.encode_source(BATCH.source), limits, 1)
    assert found.tolist() == network.translate(BATCH.source)


def test_label_smoothing_is_that_of_torch():
    embedding = torch.nn.Embedding(9, 4)
    features, target = torch.randn(2, 5, 4), torch.randint(1, 9, (2, 5))
    target[1, 3:] = PAD
    loss, nats = word_loss(features, embedding, target, target != PAD, 0.1)
    logits = (features @ embedding.weight.T).flatten(0, 1)
    for found, smoothing in ((loss, 0.1), (nats, 0.0)):
        expected = F.cross_entropy(logits, target.flatten(), ignore_index=PAD, label_smoothing=smoothing)
        torch.testing.assert_close(found, expected)


def test_padding_of_the_source_has_no_effect():
    network = build_teacher()
    longer = F.pad(BATCH.source, (0, 6), value=PAD)
    assert network.translate(longer) == network.translate(BATCH.source)
    assert padding_bias(longer != PAD)[0, 0, 0].isinf().sum() == 8


def test_shuffled_words_stay_near_their_place_and_before_the_end():
    target = torch.cat([torch.arange(4, 24), torch.tensor([EOS, PAD, PAD])]).expand(200, -1)
    shuffled = shuffle_words(target, 0.5, torch.Generator().manual_seed(0))
    assert (shuffled.sort(1).values == target.sort(1).values).all() and (shuffled[:, 20:] == target[:, 20:]).all()
    distance = (shuffled - target).abs()[:, :20]
    assert 0.03 < (distance > 0).float().mean() < 0.2 and distance.max() <= 2
    assert torch.equal(shuffle_words(target, 0.0, torch.Generator()), target)


def test_words_are_hidden_in_training_only():
    network = build_latent(config=replace(LATENTS, word_dropout=0.5))
    target = torch.full((4, 100), 5)
    assert torch.equal(network._add_noise(target, None), target)
    hidden = network.train()._add_noise(target, torch.Generator().manual_seed(0)) == PAD
    assert 0.4 < hidden.float().mean() < 0.6


@pytest.mark.parametrize("kind", ["nearest", "gumbel", "semhash"])
def test_training_steps_follow_the_warm_ups(kind):
    quantizer = QuantizerConfig(codebook_size=8, code_dim=16, kind=kind)
    config = replace(LATENTS, quantizer=quantizer, quantizer_warmup_steps=1, predictor_warmup_steps=2)
    network, generator = build_latent(config=config).train(), torch.Generator().manual_seed(0)
    known = []
    for _ in range(3):
        loss, metrics = network(BATCH, generator)
        loss.backward()
        known.append(set(metrics))
    assert known[0] == {"bits_per_subword"} and known[1] == known[0] | {"quantizer_loss", "perplexity"}
    assert known[2] == known[1] | {"bits_per_latent"}
    assert all(parameter.grad is not None for parameter in network.predictor.parameters())


def test_rows_are_laid_out_as_sequences_and_back():
    counts = torch.tensor([2, 1, 3])
    rows = torch.arange(12.0).view(6, 2)
    laid = _to_sequences(rows, counts, -1.0)
    assert laid.shape == (3, 3, 2) and (laid[1, 1:] == -1).all()
    assert torch.equal(laid[_mask(counts, 3)], rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerConfig(embed_dim=10, num_heads=4), "embed_dim must be even and a multiple of num_heads"),
        (lambda: TransformerConfig(dropout=1.0), "must be below 1"),
        (lambda: TransformerConfig(encoder_layers=0), r"model\.encoder_layers must be 1 or more, got 0"),
        (lambda: LatentConfig(num_downsamples=9), "must be 8 or less, got 9"),
        (lambda: LatentConfig(word_dropout=1.5), r"model\.word_dropout must be in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_latents_are_not_decoded_by_beam_search():
    with pytest.raises(ValueError, match="latents are decoded greedily, got --beam 4"):
        build_latent().translate(BATCH.source, beam=4)
