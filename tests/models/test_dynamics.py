"""The prior: causal, exact in all its faces, and able to learn what actions do."""

import math

import pytest
import torch
from torch.nn import functional as F

from worldmodel.models.autoregressive.sampling import sample_categorical
from worldmodel.models.autoregressive.wavefront import WavefrontNet, wavefronts
from worldmodel.models.config import DynamicsConfig
from worldmodel.models.dream_state import DreamState
from worldmodel.models.dynamics import Batch, Dynamics
from worldmodel.models.rollout import Rollout

TINY = DynamicsConfig(
    codebook_size=11,
    grid=(6, 9),
    num_actions=3,
    code_dim=8,
    context_length=4,
    embed_dim=24,
    num_heads=2,
    motion_channels=12,
    ar_channels=8,
    ar_layers=3,
    token_noise=0.0,
)


def prior(**changes) -> Dynamics:
    """A tiny prior with random weights everywhere, also where they start from zero."""
    torch.manual_seed(0)
    made = Dynamics(DynamicsConfig(**{**TINY.__dict__, **changes})).eval()
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made


def film(length: int, batch: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random codes (batch, length, 6, 9) and actions (batch, length)."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(TINY.codebook_size, (batch, length, *TINY.grid), generator=random)
    return codes, torch.randint(TINY.num_actions, (batch, length), generator=random)


def net(height: int = 5, width: int = 7) -> tuple[WavefrontNet, torch.Tensor, torch.Tensor]:
    """A small autoregressive net, codes (2, height, width) and a condition (2, height, width, 6)."""
    torch.manual_seed(0)
    made = WavefrontNet(torch.nn.Embedding(11, 8), condition_channels=6, hidden_channels=8, num_layers=3)
    return made, torch.randint(11, (2, height, width)), torch.randn(2, height, width, 6)


def test_no_logit_depends_on_its_own_code_or_a_later_one():
    made, codes, condition = net()
    embedded = made.embedding(codes).detach().requires_grad_()
    made.embedding.forward = lambda _: embedded
    logits = made(codes, condition)
    order = [(i, j) for i in range(5) for j in range(7)]
    for i, j in order:
        (gradient,) = torch.autograd.grad(logits[0, i, j].sum(), embedded, retain_graph=True)
        reached = {place for place in order if gradient[0][place].abs().sum() > 0}
        assert all(place < (i, j) for place in reached), f"{(i, j)} sees {reached}"
        assert all(b + 2 * a < j + 2 * i for a, b in reached)
        assert gradient[1].abs().sum() == 0, "rows of a batch do not mix"


def test_every_earlier_wavefront_within_reach_is_seen():
    made, codes, condition = net()
    embedded = made.embedding(codes).detach().requires_grad_()
    made.embedding.forward = lambda _: embedded
    (gradient,) = torch.autograd.grad(made(codes, condition)[0, 3, 3].sum(), embedded)
    for place in [(3, 2), (2, 2), (2, 3), (2, 4), (1, 5), (3, 1), (0, 3)]:
        assert gradient[0][place].abs().sum() > 0, f"(3, 3) does not see {place}"


@pytest.mark.parametrize(("height", "width"), [(21, 21), (1, 5), (5, 1), (4, 9), (9, 4)])
def test_wavefronts_hold_each_position_once(height, width):
    places = [
        place for front in wavefronts(height, width) for place in zip(*map(torch.Tensor.tolist, front[:2]), strict=True)
    ]
    assert sorted(places) == [(i, j) for i in range(height) for j in range(width)]
    assert len(wavefronts(21, 21)) == 61


@pytest.mark.parametrize(("height", "width"), [(5, 7), (7, 5), (1, 4), (4, 1)])
def test_sampling_by_wavefront_equals_drawing_from_the_parallel_logits(height, width):
    made, _, condition = net(height, width)
    uniforms = torch.rand(2, height, width)
    codes = made.sample(condition, uniforms)
    assert torch.equal(sample_categorical(made(codes, condition), uniforms, 1.0), codes)


def test_cached_logits_equal_parallel_logits(monkeypatch):
    made, _, condition = net()
    seen = []
    monkeypatch.setattr(
        "worldmodel.models.autoregressive.wavefront.sample_categorical",
        lambda logits, *rest: (seen.append(logits), sample_categorical(logits, *rest))[1],
    )
    codes = made.sample_in_torch(condition, torch.rand(2, 5, 7))  # not the compiled kernel: see test_wavefront_kernel
    parallel = made(codes, condition)
    for front, logits in zip(wavefronts(5, 7), seen, strict=True):
        assert torch.allclose(logits, parallel[:, front.rows, front.columns], atol=1e-5)


def test_draws_have_the_probabilities_of_the_logits():
    logits = torch.tensor([0.0, 1.0, -1.0])
    drawn = sample_categorical(
        logits.expand(100_000, 3), torch.rand(100_000, generator=torch.Generator().manual_seed(0)), 0.5
    )
    shares = torch.bincount(drawn, minlength=3) / 100_000
    assert torch.allclose(shares, (logits / 0.5).softmax(0), atol=0.01)
    assert sample_categorical(logits, torch.tensor(0.999), 0.0) == 1
    assert sample_categorical(torch.tensor([0.0, float("-inf")]), torch.tensor(0.9999999), 1.0) == 0, (
        "impossible codes are not drawn"
    )


@torch.no_grad()
def follow(made: Dynamics, codes: torch.Tensor, actions: torch.Tensor, first: int = 1) -> list:
    """The predictions of the sequential rollout along known frames."""
    rollout = Rollout(made)
    state, predictions = rollout.start(codes[:, :first], actions[:, : first - 1]), []
    for step in range(first - 1, codes.shape[1]):
        state, prediction = rollout.predict(state, actions[:, step])
        predictions.append(prediction)
        if step + 1 < codes.shape[1]:
            state = state._replace(codes=torch.stack([state.latest_codes, codes[:, step + 1]], 1))
    return predictions


@pytest.fixture(params=["compiled", "torch"])
def loops(request, monkeypatch) -> None:
    """With the compiled kernels, and as where there is no Numba."""
    if request.param == "torch":
        for module in ("rollout", "autoregressive.wavefront"):
            monkeypatch.setattr(f"worldmodel.models.{module}.load_kernel", lambda _: None)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"num_layers": 3, "num_heads": 4}, {"embed_dim": 42, "num_heads": 2, "motion_channels": 5}]
)
def test_the_cached_face_equals_the_parallel_one_far_beyond_the_context(changes, loops):
    made, (codes, actions) = prior(**changes), film(13, batch=6)
    parallel = made.predict(codes, actions)
    for step, prediction in enumerate(follow(made, codes, actions)):
        for mine, theirs in zip(prediction, parallel, strict=True):
            assert torch.allclose(mine, theirs[:, step], atol=1e-5), step


@torch.no_grad()
def test_after_the_memory_has_rolled_over_a_frame_depends_on_its_window_alone():
    made, (codes, actions) = prior(), film(13)
    window = made.predict(codes[:, -TINY.context_length :], actions[:, -TINY.context_length :])
    last = follow(made, codes, actions)[-1]
    assert torch.allclose(last.condition, window.condition[:, -1], atol=1e-5)
    other = torch.cat([film(9, seed=5)[0], codes[:, 9:]], 1)
    assert torch.allclose(follow(made, other, actions)[-1].condition, last.condition, atol=1e-5)


@torch.no_grad()
def test_every_frame_and_action_of_the_window_matters():
    made, (codes, actions) = prior(), film(TINY.context_length)
    whole = made.predict(codes, actions).condition[:, -1]
    for step in range(TINY.context_length):
        changed, acted = codes.clone(), actions.clone()
        changed[:, step] = (changed[:, step] + 1) % TINY.codebook_size
        acted[:, step] = (acted[:, step] + 1) % TINY.num_actions
        assert not torch.allclose(made.predict(changed, actions).condition[:, -1], whole, atol=1e-4), step
        assert not torch.allclose(made.predict(codes, acted).condition[:, -1], whole, atol=1e-4), step


@torch.no_grad()
def test_no_outlook_depends_on_a_later_frame_or_action():
    made, (codes, actions) = prior(), film(9)
    other_codes, other_actions = film(9, seed=7)
    for step in range(8):
        mixed = torch.cat([codes[:, : step + 1], other_codes[:, step + 1 :]], 1)
        acted = torch.cat([actions[:, : step + 1], other_actions[:, step + 1 :]], 1)
        before = made.predict(codes, actions).condition[:, : step + 1]
        assert torch.allclose(made.predict(mixed, acted).condition[:, : step + 1], before, atol=1e-5)


@torch.no_grad()
@pytest.mark.slow
def test_a_batch_of_two_is_two_of_one(loops):
    made, (codes, actions) = Rollout(prior()), film(8)
    uniforms = torch.rand(5, 2, *TINY.grid)
    both = made.start(codes, actions[:, :7])
    singles = [made.start(codes[b : b + 1], actions[b : b + 1, :7]) for b in range(2)]
    for step in range(5):
        both, _ = made.step(both, actions[:, step], uniforms[step])
        for b in range(2):
            singles[b], _ = made.step(singles[b], actions[b : b + 1, step], uniforms[step, b : b + 1])
            assert torch.equal(singles[b].codes[0], both.codes[b])


@torch.no_grad()
def test_dreams_with_more_and_with_less_behind_them_go_on_side_by_side(loops):
    made, (codes, actions) = Rollout(prior()), film(8)
    short, long = made.start(codes[:1, :2], actions[:1, :1]), made.start(codes[1:], actions[1:, :7])
    both = DreamState.concatenate([short, long])
    uniforms = torch.rand(2, *TINY.grid)
    together, prediction = made.step(both, actions[:, 7], uniforms)
    for row, alone in enumerate((short, long)):
        alone, alone_prediction = made.step(alone, actions[row : row + 1, 7], uniforms[row : row + 1])
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.allclose(alone_prediction.rewards[0], prediction.rewards[row], atol=1e-5)


@torch.no_grad()
def test_a_prior_without_actions_does_not_know_them():
    made, (codes, actions) = Rollout(prior(num_actions=0)), film(6)
    assert torch.equal(
        made.dynamics.predict(codes, actions).condition, made.dynamics.predict(codes, 0 * actions).condition
    )
    state = made.start(codes, actions[:, :5])
    uniforms = torch.rand(2, *TINY.grid)
    assert torch.equal(
        made.step(state, actions[:, 5], uniforms)[0].codes, made.step(state, 0 * actions[:, 5], uniforms)[0].codes
    )


@torch.no_grad()
def test_a_prior_without_context_does_not_know_the_past():
    made, (codes, actions) = Rollout(prior(context_length=0)), film(6)
    assert made.dynamics.predict(codes, actions).condition.abs().sum() == 0
    state = made.start(codes, actions[:, :5])
    state, _ = made.step(state, actions[:, 5], torch.rand(2, *TINY.grid))
    assert isinstance(state, DreamState)


def batch(codes: torch.Tensor, actions: torch.Tensor) -> Batch:
    """All valid, a reward of 3 for action 2, ended by it."""
    steps = actions[:, :-1]
    valid = torch.ones(codes.shape[:2], dtype=torch.bool)
    rewards = 3.0 * (steps == 2)
    return Batch(codes, steps, rewards, (steps == 2).float(), valid, valid[:, 1:])


def test_a_prior_whose_actions_are_kept_from_it_in_training_learns_to_do_without():
    codes, actions = film(5)
    steps = torch.zeros(2, 4)
    batch = Batch(codes, actions[:, :-1], steps, steps, torch.ones(2, 5, dtype=torch.bool), steps == 0)
    other = batch._replace(actions=(batch.actions + 1) % TINY.num_actions)
    for dropout in (1.0, 0.0):
        made = prior(action_dropout=dropout).train()
        same = torch.equal(made(batch)[0], made(other)[0])
        assert same == (dropout == 1.0)
        assert not torch.equal(made.eval()(batch)[0], made(other)[0]), "in evaluation it gets them"


def test_what_lies_beyond_an_episodes_end_does_not_count():
    made, (codes, actions) = prior(), film(6)
    whole = batch(codes, actions)
    frames, steps = whole.frame_valid.clone(), whole.step_valid.clone()
    frames[:, 4:], steps[:, 3:] = False, False
    cut = whole._replace(frame_valid=frames, step_valid=steps)
    other = torch.cat([codes[:, :4], film(2, seed=9)[0]], 1)
    garbage = cut._replace(codes=other, rewards=whole.rewards + 100 * ~steps)
    assert made(cut)[0].item() == pytest.approx(made(garbage)[0].item(), rel=1e-5)
    assert made(cut)[0].item() != pytest.approx(made(whole)[0].item(), rel=1e-3)


def test_ends_can_weigh_more_and_are_foretold_as_often_as_they_come():
    plain, weighing = (prior(termination_pos_weight=weight) for weight in (1.0, 9.0))
    seen = batch(*film(6))
    seen = seen._replace(terminated=torch.zeros_like(seen.terminated).index_fill(1, torch.tensor([2]), 1.0))
    before, after = (made.score(seen.codes, seen.codes[:, :-1], seen.actions)[1] for made in (plain, weighing))
    torch.testing.assert_close(
        after.termination_logits, before.termination_logits - math.log(9)
    )  # odds of 9·p : 1 are predicted as p : 1
    logits, ends = before.termination_logits, seen.terminated
    expected = -(9 * ends * F.logsigmoid(logits) + (1 - ends) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(weighing(seen)[1]["termination_nats"], expected)


@pytest.mark.slow
def test_it_learns_what_actions_do_and_what_they_bring():
    """Codes that move one place left, stay or move one place right, as the action says."""
    torch.manual_seed(0)
    made, random = (
        Dynamics(DynamicsConfig(**{**TINY.__dict__, "context_length": 2, "num_layers": 1})),
        torch.Generator().manual_seed(0),
    )
    optimizer = torch.optim.Adam(made.parameters(), 5e-3)

    def moving(size: int) -> Batch:
        codes = [torch.randint(TINY.codebook_size, (size, *TINY.grid), generator=random)]
        actions = torch.randint(TINY.num_actions, (size, 4), generator=random)
        for step in range(3):
            codes.append(
                torch.stack([row.roll(int(a) - 1, -1) for row, a in zip(codes[-1], actions[:, step], strict=True)])
            )
        return batch(torch.stack(codes, 1), actions)

    for _ in range(150):
        optimizer.zero_grad()
        loss, _ = made(moving(8))
        loss.backward()
        optimizer.step()
    made.eval()
    test = moving(32)
    _, metrics = made(test)
    _, shuffled = made(test._replace(actions=test.actions.roll(1, 0)))
    assert metrics["bits_per_code"] < 1.5, "chance is 3.46"
    assert shuffled["bits_per_code"] > metrics["bits_per_code"] + 1
    assert metrics["termination_nats"] < 0.1
    assert metrics["reward_error"] < 0.5


def test_training_can_predict_a_few_frames_of_each_stretch():
    made, seen = prior(num_targets=2).train(), batch(*film(8))
    _, metrics = made(seen, torch.Generator().manual_seed(3))
    frames = torch.rand(seen.actions.shape, generator=torch.Generator().manual_seed(3)).argsort(1)[:, :2]
    nats, prediction = prior().score(seen.codes, seen.codes[:, :-1], seen.actions)
    expected = nats.gather(1, frames).mean() / math.log(2)
    torch.testing.assert_close(metrics["bits_per_code"], expected)
    squared = (prediction.rewards - seen.rewards).square().gather(1, frames).mean()
    torch.testing.assert_close(metrics["reward_error"], squared)
    everything = prior(num_targets=7).train()(seen, torch.Generator())[0]
    torch.testing.assert_close(everything, prior().train()(seen)[0])
    torch.testing.assert_close(made.eval()(seen)[0], prior()(seen)[0])


def test_noise_makes_training_harder_but_not_evaluation():
    made, (codes, actions) = prior(token_noise=0.5), film(5)
    part = batch(codes, actions)
    assert made(part)[0] == made(part, torch.Generator().manual_seed(0))[0]
    made.train()
    first, second = (made(part, torch.Generator().manual_seed(seed))[0] for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_frames_of_its_own_take_the_place_of_remembered_ones_in_training_alone(share, monkeypatch):
    made, (codes, actions) = prior(scheduled_sampling=share), film(6, batch=8)
    made.wavefront.logits.weight.data *= 1000  # so sure of itself that there is one frame to draw
    part, contexts = batch(codes, actions), []
    score = made.score

    def listening(codes, known, *rest):
        contexts.append(known)
        return score(codes, known, *rest)

    monkeypatch.setattr(made, "score", listening)
    made(part)
    made.train()(part, torch.Generator().manual_seed(0))
    assert torch.equal(contexts[0], codes[:, :-1])
    with torch.no_grad():
        condition = made.predict(codes[:, :-2], actions[:, :-2]).condition.flatten(0, 1)
        drawn = made.wavefront(codes[:, 1:-1].flatten(0, 1), condition).argmax(-1).view(8, 4, *TINY.grid)
    own = (contexts[1][:, 1:] == drawn).float().mean((2, 3)) > 0.9  # but for rounding
    true = (contexts[1][:, 1:] == codes[:, 1:-1]).all((2, 3))
    assert torch.equal(contexts[1][:, 0], codes[:, 0]) and (own ^ true).all()
    assert own.float().mean() == pytest.approx(share, abs=0.2 * (0 < share < 1))


@pytest.mark.parametrize(
    ("codes", "actions", "message"),
    [
        ((2, 3, 6, 9), (2, 3), "a dream starts from codes"),
        ((2, 3, 6, 8), (2, 2), "a dream starts from codes"),
        ((2, 3, 54), (2, 2), "a dream starts from codes"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(codes, actions, message):
    with pytest.raises(ValueError, match=message):
        Rollout(prior()).start(torch.zeros(codes, dtype=torch.int64), torch.zeros(actions, dtype=torch.int64))


@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_that_does_not_exist_is_refused(action):
    with pytest.raises(ValueError, match=r"actions must be in \[0, 3\)"):
        Rollout(prior()).start(torch.zeros(1, 2, 6, 9, dtype=torch.int64), torch.full((1, 1), action))


@pytest.mark.slow
def test_a_training_step_runs_in_bfloat16_and_compiled():
    made, (codes, actions) = prior(token_noise=0.1).train(), film(5)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = torch.compile(made, backend="eager")(batch(codes, actions), torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(made.wavefront.first.weight.grad).all()


@pytest.mark.parametrize("sizes", [{"ar_layers": 1}, {"num_layers": 0}])
def test_too_few_layers_are_refused_before_training(sizes):
    with pytest.raises(ValueError, match=r"model.ar_layers must be 2 or more, and model.num_layers 1 or more"):
        DynamicsConfig(**sizes)
    with pytest.raises(ValueError, match="a wavefront network must have 2 layers or more, got 1"):
        WavefrontNet(torch.nn.Embedding(11, 8), condition_channels=6, hidden_channels=8, num_layers=1)


def test_a_code_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"codes must be in \[0, 11\)"):
        Rollout(prior()).start(torch.full((1, 1, 6, 9), 11), torch.zeros(1, 0, dtype=torch.int64))
