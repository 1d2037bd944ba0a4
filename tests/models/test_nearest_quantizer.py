"""The quantizer against the papers' equations, worked by hand."""

import math

import pytest
import torch

from worldmodel.models.quantizers.config import QuantizerConfig
from worldmodel.models.quantizers.interface import perplexity
from worldmodel.models.quantizers.kinds import build_quantizer
from worldmodel.models.quantizers.nearest import VectorQuantizer, nearest_codes, sample_codes


def quantizer(update: str = "ema", codebook: list[list[float]] | None = None, **settings) -> VectorQuantizer:
    """A two-dimensional quantizer whose codebook is given, past its data-dependent start."""
    torch.manual_seed(0)
    codebook = codebook or [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]
    config = QuantizerConfig(
        codebook_size=len(codebook), code_dim=2, update=update, **{"dead_code_reset_every": 0, **settings}
    )
    made = VectorQuantizer(config)
    made.codebook.data.copy_(torch.tensor(codebook))
    made.steps += 1
    return made


def grid(*vectors: tuple[float, float]) -> torch.Tensor:
    """Vectors as one row of a picture, (1, 2, 1, N)."""
    return torch.tensor(vectors).T[None, :, None]


def test_the_code_is_the_nearest_by_squared_distance():
    rows, codebook = torch.randn(3000, 8), torch.randn(37, 8)
    assert torch.equal(nearest_codes(rows, codebook), torch.cdist(rows, codebook).argmin(1))


def test_the_gradient_passes_straight_through():
    z = grid((0.9, 0.1), (0.1, 1.7)).requires_grad_()
    made = quantizer(commitment_weight=0.0)
    weights = torch.tensor([[3.0, 5.0], [7.0, 11.0]])[None, :, None]
    (made(z).vectors * weights).sum().backward()
    assert torch.equal(z.grad, weights)


def test_the_commitment_term_pulls_the_encoder_and_the_codebook_term_the_code():
    z = grid((1.5, 0.0)).requires_grad_()
    made = quantizer("loss", commitment_weight=0.25)
    result = made(z)
    result.loss.backward()
    assert result.loss.item() == pytest.approx((0.25 + 1.0) * 0.5**2 / 2)  # mean over the two elements
    assert z.grad.flatten().tolist() == pytest.approx([0.25 * 2 * 0.5 / 2, 0.0])
    assert made.codebook.grad[1].tolist() == pytest.approx([-2 * 0.5 / 2, 0.0])
    assert made.codebook.grad[[0, 2]].abs().sum() == 0


def test_the_moving_averages_follow_equations_6_to_8():
    made = quantizer("ema", ema_decay=0.9)
    made(grid((1.0, 0.2), (1.2, 0.0), (0.0, 1.5)))
    made(grid((0.8, 0.4)))
    n1, m1 = 0.9 * (0.1 * 2) + 0.1 * 1, [0.9 * 0.1 * 2.2 + 0.1 * 0.8, 0.9 * 0.1 * 0.2 + 0.1 * 0.4]
    assert made.ema_count[1].item() == pytest.approx(n1)
    assert made.codebook[1].tolist() == pytest.approx([m / n1 for m in m1])


@pytest.mark.slow
def test_a_code_that_nothing_chooses_stays_where_it_is():
    made = quantizer("ema", ema_decay=0.9)
    made(grid((0.0, 1.5)))
    after_use = made.codebook[2].clone()
    for _ in range(2000):  # until the averages of code 2 underflow
        made(grid((1.0, 0.2)))
    assert torch.equal(made.codebook[2], after_use)
    assert made.codebook[0].tolist() == [0.0, 0.0]
    assert torch.isfinite(made.codebook).all()


def test_the_first_average_is_the_mean_of_the_first_batch_without_bias():
    made = quantizer("ema", ema_decay=0.99)
    made(grid((1.0, 0.2), (1.2, 0.0)))
    assert made.codebook[1].tolist() == pytest.approx([1.1, 0.1])


def test_soft_em_samples_codes_by_squared_distance():
    rows, codebook = torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    drawn = sample_codes(rows.expand(50_000, 2), codebook, 4, torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, math.exp(-1), math.exp(-4)])
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    assert torch.allclose(shares, weights / weights.sum(), atol=0.005)


def test_soft_em_decodes_the_mean_of_the_samples_and_averages_their_counts():
    made, z = quantizer("soft_em", num_samples=5, ema_decay=0.5), grid((0.4, 0.1))
    codebook = made.codebook.clone()
    samples = sample_codes(torch.tensor([[0.4, 0.1]]), codebook, 5, torch.Generator().manual_seed(3))[0]
    result = made(z, torch.Generator().manual_seed(3))
    assert torch.allclose(result.vectors.flatten(), codebook[samples].mean(0))
    assert torch.allclose(made.ema_count, 0.5 * torch.bincount(samples, minlength=3) / 5)


def test_a_prior_learns_the_samples_whose_mean_was_decoded():
    made, z = quantizer("soft_em", num_samples=5, ema_decay=0.5), grid((0.4, 0.1), (0.1, 1.4))
    codebook = made.codebook.clone()
    samples = made.sample_codes(z, 5, torch.Generator().manual_seed(3))
    assert samples.shape == (1, 5, 1, 2) and samples.dtype == torch.int64
    result = made(z, torch.Generator().manual_seed(3))
    assert torch.equal(result.samples, samples) and made.eval()(z).samples is None
    assert torch.allclose(result.vectors[0, :, 0].T, codebook[samples[0, :, 0]].mean(0))
    many = made.sample_codes(z, 50_000, torch.Generator().manual_seed(0))
    distances = torch.cdist(z[0, :, 0].T, made.codebook).square()
    for place in range(2):
        shares = torch.bincount(many[0, :, 0, place], minlength=3) / 50_000
        assert torch.allclose(shares, (-distances[place]).softmax(0), atol=0.01)


@pytest.mark.parametrize("update", ["loss", "ema", "soft_em"])
def test_codes_are_the_same_in_training_and_evaluation(update):
    z = torch.randn(2, 2, 4, 5)
    trained, evaluated = quantizer(update).train()(z), quantizer(update).eval()(z)
    assert torch.equal(trained.codes, evaluated.codes)
    assert torch.equal(quantizer(update).encode(z), evaluated.codes)
    assert torch.equal(quantizer(update).decode(evaluated.codes), evaluated.vectors)


def test_evaluation_learns_nothing():
    made = quantizer().eval()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made(torch.randn(2, 2, 4, 5))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_the_first_batch_places_the_codebook_on_the_data():
    made = VectorQuantizer(QuantizerConfig(codebook_size=8, code_dim=2))
    z = 100 + torch.randn(4, 2, 8, 8)
    assert (made(z, torch.Generator().manual_seed(0)).counts > 0).sum() >= 7
    assert (made.codebook - 100).abs().max() < 5


def test_a_random_codebook_stays_random_where_nothing_chooses_it():
    torch.manual_seed(0)
    made = VectorQuantizer(
        QuantizerConfig(codebook_size=512, code_dim=8, init="random", init_std=0.1, dead_code_reset_every=0)
    )
    assert made.codebook.std().item() == pytest.approx(0.1, rel=0.05)
    before = made.codebook.clone()
    used = made(torch.ones(1, 8, 4, 4) + 0.01 * torch.randn(1, 8, 4, 4), torch.Generator().manual_seed(0)).counts > 0
    assert used.sum() < 16
    assert torch.equal(made.codebook[~used], before[~used])
    assert not torch.equal(made.codebook[used], before[used])


def test_revival_moves_dead_codes_onto_the_data_and_resets_every_buffer():
    made = quantizer("ema", codebook=[[0.0, 0.0], [1e3, 1e3]], dead_code_reset_every=3)
    z = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    made(z), made(z)
    assert made.codebook[1].tolist() == [1e3, 1e3]
    live_count = made.ema_count[0].item()
    made(z, torch.Generator().manual_seed(0))
    assert made.codebook[1].abs().max() < 10
    assert made.usage.sum() == 64  # counted anew since the revival
    made.eval()
    assert (made(z).counts > 0).all(), "the revived code must be in use"
    assert made.ema_count[0].item() < 2 * live_count


def test_a_code_that_was_chosen_once_is_not_dead():
    made = quantizer("ema", codebook=[[0.0, 0.0], [8.0, 8.0], [1e3, 1e3]], dead_code_reset_every=2)
    made(grid((0.1, 0.0), (8.0, 8.0)))  # step 1
    made(grid((0.1, 0.0), (0.0, 0.1)))  # step 2, before which the third moves
    assert made.codebook[1].tolist() == [8.0, 8.0] and made.codebook[2].abs().max() < 10


def test_an_update_keeps_a_revived_code_where_revival_put_it():
    made = quantizer("ema", codebook=[[0.0, 0.0], [1e3, 1e3]], dead_code_reset_every=2)
    made.ema_sum[1], made.ema_count[1] = 1e3, 1.0  # stale averages that would pull it back
    z = torch.randn(1, 2, 8, 8)
    made(z), made(z)
    assert made.codebook[1].abs().max() < 10


def test_counts_and_perplexity_tell_how_many_codes_are_used():
    assert perplexity(torch.tensor([5.0, 5.0, 0.0])) == pytest.approx(2.0)
    assert perplexity(torch.tensor([7.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert quantizer()(grid((0.1, 0.0), (0.0, 0.1), (0.0, 1.9))).counts.tolist() == [2, 0, 1]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_any_number_of_trailing_dimensions_works(dims):
    z = torch.randn(2, 2, *range(3, 3 + dims))
    result = quantizer()(z)
    assert result.vectors.shape == z.shape
    assert result.codes.shape == (2, *range(3, 3 + dims))


@pytest.mark.parametrize(
    "z", [torch.zeros(2, 2), torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.int64)], ids=str
)
def test_a_wrong_input_is_refused(z):
    with pytest.raises(ValueError, match=r"expects floating \(B, 2, \*grid\), got"):
        quantizer()(z)


def test_a_value_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer()(torch.full((1, 2, 3, 3), float("nan")))


def test_distances_are_float32_under_autocast():
    torch.manual_seed(0)
    made = VectorQuantizer(QuantizerConfig(codebook_size=512, code_dim=64)).eval()
    z = torch.randn(1, 64, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        result, codes = made(z), made.encode(z)
    assert torch.equal(result.codes, made(z).codes)
    assert torch.equal(codes, made(z).codes)
    assert result.vectors.dtype == torch.float32


def _learn_on_worker(rank: int, workers: int, address: str, parts: torch.Tensor, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=workers)
    torch.set_num_threads(1)
    made = VectorQuantizer(QuantizerConfig(codebook_size=16, code_dim=2, dead_code_reset_every=3))
    for step in range(7):
        made(parts[step, rank], torch.Generator().manual_seed(rank))
    totals = []
    for kind in ("nearest", "gumbel", "semhash"):
        torch.manual_seed(0)
        made_so = build_quantizer(QuantizerConfig(codebook_size=16, code_dim=2, kind=kind))
        totals.append(made_so(parts[0, rank], torch.Generator().manual_seed(rank)).counts.tolist())
    results.put((rank, made.codebook.tolist(), made.ema_count.tolist(), totals))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_learn_one_codebook(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results, parts = context.Queue(), torch.randn(7, 2, 1, 2, 8, 8)
    parts[:, 1] += 3
    address = f"file://{tmp_path}/rendezvous"
    workers = [context.Process(target=_learn_on_worker, args=(rank, 2, address, parts, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    (_, first, counts, totals), (_, second, _, others) = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert first == second
    assert sum(counts) > 0
    assert totals == others and [sum(total) for total in totals] == [2 * 8 * 8] * 3, "of both, for every kind"
    assert max(max(row) for row in first) > 2, "codes lie on both workers' data"
    assert min(min(row) for row in first) < 0


def test_soft_em_moves_codes_to_the_mean_of_what_was_drawn_for_them():
    quantizer = VectorQuantizer(
        QuantizerConfig(codebook_size=2, code_dim=2, update="soft_em", num_samples=8, init="random", ema_decay=0.5)
    )
    quantizer.codebook.copy_(torch.tensor([[10.0, 0.0], [-10.0, 0.0]]))  # so far apart that every draw is the nearest
    rows = torch.tensor([[9.0, 1.0], [11.0, 2.0], [-9.0, 3.0]])
    quantizer(rows.T[None])
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[10.0, 1.5], [-9.0, 3.0]]))
    torch.testing.assert_close(quantizer.ema_count, torch.tensor([1.0, 0.5]))
