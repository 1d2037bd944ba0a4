"""Dreams as Gymnasium worlds: single ones, and vectors of them."""

import copy
import pickle
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from envs.dream import DreamEnv, DreamVectorEnv
from tests.conftest import sliding_stripes
from worldmodel.episodes.schema import Schema
from worldmodel.episodes.segments import split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.world_model import WorldModel

SAME_STEP = AutoresetMode.SAME_STEP


@pytest.fixture
def settings(world_run):
    return {"world": str(world_run), "horizon": 5}


def set_termination_logit(env, logit):
    """Make every frame terminate with the same probability."""
    with torch.no_grad():
        last = env.world.rollout.dynamics.outcome[-1]
        last.weight[1], last.bias[1] = 0.0, logit


def play(env, actions, seed):
    """Everything that a vector of dreams shows under actions (T, B)."""
    seen = [(env.reset(seed=seed)[0], *[np.zeros(env.num_envs)] * 3)]
    return [*seen, *(env.step(row)[:4] for row in actions)]


@pytest.mark.parametrize("observation", ["codes", "frame"])
@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.slow
def test_a_dream_is_a_world_by_gymnasiums_own_checks(settings, observation, history):
    env = gym.make("envs:Dream-v0", observation=observation, history=history, render_mode="rgb_array", **settings)
    check_env(env.unwrapped)
    codes = (history,) * (history > 1) + (6, 6)
    assert env.reset(seed=0)[0].shape == (codes if observation == "codes" else (24, 24, 3 * history))
    assert env.render().shape == (24, 24, 3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_of_a_dream_goes_on_as_the_dream_does(settings, copied, threads):
    env = DreamEnv(**settings, threads=threads)
    set_termination_logit(env, -20.0)
    env.reset(seed=2)
    env.step(0)
    env.world.decode(np.zeros((3, 6, 6), np.int64))  # by the threads, which are not copied
    other = copied(env)
    for action in (2, 1):
        for one, two in zip(env.step(action), other.step(action), strict=True):
            np.testing.assert_array_equal(one, two)


def test_several_frames_lie_in_the_channels_the_oldest_first(settings):
    one, two = (DreamEnv(observation="frame", history=history, **settings) for history in (1, 2))
    before, shown = one.reset(seed=3)[0], two.reset(seed=3)[0]
    for action in (0, 2, 1):
        np.testing.assert_array_equal(shown[..., 3:], before)
        now, shown = one.step(action)[0], two.step(action)[0]
        np.testing.assert_array_equal(shown[..., :3], before)
        before = now


def test_make_vec_makes_dreams_that_step_together(settings):
    env = gym.make_vec("envs:Dream-v0", num_envs=3, **settings)
    assert isinstance(env.unwrapped, DreamVectorEnv)
    observations, infos = env.reset(seed=0)
    assert env.observation_space.contains(observations) and infos == {}
    observations, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observations)
    assert rewards.shape == terminated.shape == truncated.shape == (3,)


@pytest.mark.parametrize("observation", ["codes", "frame"])
@pytest.mark.slow
def test_rows_are_single_dreams_of_the_same_seeds(settings, observation):
    settings |= {"observation": observation, "history": 2}
    actions = np.random.default_rng(0).integers(0, 3, (23, 4))
    seen = play(DreamVectorEnv(4, **settings), actions, seed=7)
    for row in range(4):
        env, over = DreamEnv(**settings), False
        np.testing.assert_array_equal(env.reset(seed=7 + row)[0], seen[0][0][row])
        for action, (observations, rewards, terminated, truncated) in zip(actions[:, row], seen[1:], strict=True):
            if over:
                np.testing.assert_array_equal(env.reset()[0], observations[row])
                assert rewards[row] == 0 and not terminated[row] and not truncated[row]
                over = False
            else:
                single, reward, ended, cut, _ = env.step(action)
                np.testing.assert_array_equal(single, observations[row])
                assert (ended, cut) == (terminated[row], truncated[row])
                assert reward == pytest.approx(rewards[row], abs=1e-5)
                over = ended or cut


@pytest.mark.slow
def test_a_seed_gives_the_same_dreams_again_and_another_seed_others(settings):
    actions, env = np.ones((12, 2), np.int64), DreamVectorEnv(2, **settings)
    first, again, other = (np.stack([step[0] for step in play(env, actions, seed)]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[:, 0] != first[:, 1]).any()


@pytest.mark.parametrize(("logit", "lengths"), [(-30.0, 5), (30.0, 1)])
def test_an_episode_ends_by_the_priors_probability_or_at_the_horizon(settings, logit, lengths):
    env = DreamVectorEnv(2, **settings)
    set_termination_logit(env, logit)
    seen = play(env, np.zeros((12, 2), np.int64), seed=0)
    ends = [step for step, (*_, terminated, truncated) in enumerate(seen) if (terminated + truncated).all()]
    assert ends[0] == lengths and ends[1] == 2 * lengths + 1  # a step in between begins anew
    assert bool(seen[lengths][2].all()) == (logit > 0)


def test_a_held_action_is_the_same_action_taken_again(settings):
    settings["horizon"] = 7
    single, held = DreamVectorEnv(3, **settings), DreamVectorEnv(3, action_repeat=2, **settings)
    for env in (single, held):
        with torch.no_grad():
            env.world.rollout.dynamics.outcome[-1].bias[1] = -1.5  # some rows live long, and some end
    chosen = np.random.default_rng(0).integers(3, size=(3, 3))
    ones, twos = play(single, np.repeat(chosen, 2, 0), seed=4), play(held, chosen, seed=4)
    alive, ended = np.ones(3, bool), 0
    for step, (observations, rewards, terminated, _) in enumerate(twos[1:], 1):
        first, second = ones[2 * step - 1], ones[2 * step]
        np.testing.assert_array_equal(terminated[alive], (first[2] | second[2])[alive])
        ended += terminated[alive].sum()
        whole = alive & ~first[2]
        np.testing.assert_array_equal(observations[whole], second[0][whole])
        np.testing.assert_allclose(rewards[whole], (first[1] + second[1])[whole])
        np.testing.assert_allclose(rewards[alive & first[2]], first[1][alive & first[2]])
        alive &= ~terminated
    assert alive.any() and ended and not twos[-1][3][alive].any()
    assert held.step(chosen[0])[3][alive].any(), "the seventh frame is the first of the fourth step"
    with pytest.raises(ValueError, match="action_repeat must be a whole number of 1 or more, got 0"):
        DreamVectorEnv(1, action_repeat=0, **settings)


def test_a_termination_cost_charges_expected_terminations_and_truncates_where_a_dream_would_end(settings):
    sampled, expected = DreamVectorEnv(3, **settings), DreamVectorEnv(3, termination_cost=50.0, **settings)
    for env in (sampled, expected):
        set_termination_logit(env, -1.0)
    plain, charged = (play(env, np.zeros((5, 3), np.int64), seed=2) for env in (sampled, expected))
    assert any(step[2].any() for step in plain), "a probability of 0.27 ends some of three dreams in five steps"
    assert not any(step[2].any() for step in charged)
    probability = 1 / (1 + np.exp(1.0))
    for (_, rewards, terminated, truncated), step in zip(plain[1:], charged[1:], strict=True):
        np.testing.assert_array_equal(step[3], terminated | truncated)
        charged_rows = step[1] != 0
        np.testing.assert_allclose(step[1], rewards - 50 * probability * charged_rows, atol=1e-4)
    with pytest.raises(ValueError, match="termination_cost must be 0 or more, got -1"):
        DreamVectorEnv(1, termination_cost=-1, **settings)


def test_dreams_start_near_recorded_terminations(settings, tmp_path):
    def stripes(name, seeds):
        names = ("left", "stay", "right")
        store = EpisodeStore.create(tmp_path / name, Schema((24, 24, 3), "uint8", names, "stripes"))
        for seed in seeds:  # episodes of odd seeds terminate
            store.append(sliding_stripes(seed, steps=60))
        return {**settings, "start": "store", "store": str(store.path)}

    near = DreamVectorEnv(1, starts_near_termination=1.0, **stripes("mixed", (0, 1, 2, 4)))
    chosen = [near._choose_start(np.random.default_rng(seed)) for seed in range(300)]
    assert {number for number, _ in chosen} == {1}
    assert {61 - (offset + near.context) for _, offset in chosen} == set(range(5, 41)), "frames to the termination"
    mixed = DreamVectorEnv(1, starts_near_termination=0.5, **stripes("mixed", ()))
    numbers = [mixed._choose_start(np.random.default_rng(seed))[0] for seed in range(300)]
    assert set(numbers) == {0, 1, 2} and 150 < numbers.count(1) < 250  # half, and a third of the others
    with pytest.raises(ValueError, match=r"starts_near_termination must be in \[0, 1\], got 1.5"):
        DreamVectorEnv(1, starts_near_termination=1.5, **settings)
    with pytest.raises(ValueError, match="needs an episode that terminated"):
        DreamVectorEnv(1, starts_near_termination=0.5, **stripes("endless", (0, 2)))


def test_same_step_autoreset_shows_the_end_and_the_new_beginning_at_once(settings):
    settings["horizon"] = 3
    waits, restarts = DreamVectorEnv(2, **settings), DreamVectorEnv(2, autoreset_mode=SAME_STEP, **settings)
    assert waits.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert restarts.metadata["autoreset_mode"] is SAME_STEP
    for env in (waits, restarts):
        set_termination_logit(env, -30.0)
    actions = np.ones((4, 2), np.int64)
    expected = play(waits, actions, seed=6)  # the fourth step restarts both dreams
    restarts.reset(seed=6)
    for step, action in enumerate(actions[:3], 1):
        observations, rewards, terminated, truncated, infos = restarts.step(action)
        np.testing.assert_array_equal(rewards, expected[step][1])
        np.testing.assert_array_equal(truncated, expected[step][3])
        assert bool(infos) == (terminated | truncated).any() == (step == 3)
    assert infos["_final_obs"].all()
    np.testing.assert_array_equal(np.stack(infos["final_obs"]), expected[3][0])
    np.testing.assert_array_equal(observations, expected[4][0])
    assert not restarts.step(actions[0])[3].any(), "a new dream has steps of its own"
    with pytest.raises(ValueError, match="autoreset_mode must be AutoresetMode"):
        DreamVectorEnv(1, autoreset_mode=AutoresetMode.DISABLED, **settings)


@pytest.mark.slow
def test_stable_baselines_trains_in_dreams_that_step_together(settings):
    sb3 = pytest.importorskip("stable_baselines3")
    from envs.stable_baselines import StableBaselinesDreams

    settings["horizon"] = 3
    dreams = StableBaselinesDreams(2, observation="codes", **settings)
    dreams.seed(6)
    direct = DreamVectorEnv(2, **settings)
    for env in (dreams.dreams, direct):
        set_termination_logit(env, -30.0)
    expected = play(direct, np.ones((4, 2), np.int64), seed=6)
    np.testing.assert_array_equal(dreams.reset(), expected[0][0])
    for step in (1, 2, 3):
        observations, rewards, ended, infos = dreams.step(np.ones(2, np.int64))
        np.testing.assert_allclose(rewards, expected[step][1], rtol=1e-6)
    assert ended.all() and all(info["TimeLimit.truncated"] for info in infos)
    np.testing.assert_array_equal(infos[1]["terminal_observation"], expected[3][0][1])
    np.testing.assert_array_equal(observations, expected[4][0])
    assert dreams.get_images() == [None, None] and dreams.get_attr("action_space") == [dreams.action_space] * 2
    shown = StableBaselinesDreams(2, render_mode="rgb_array", **settings)
    shown.reset()
    assert [frame.shape for frame in shown.get_images()] == [(24, 24, 3)] * 2
    agent = sb3.PPO("MlpPolicy", dreams, n_steps=4, batch_size=4, n_epochs=1)
    before = [weight.clone() for weight in agent.policy.parameters()]
    agent.learn(16)
    assert any((old != new).any() for old, new in zip(before, agent.policy.parameters(), strict=True))


def test_the_temperature_reaches_the_prior(settings):
    for temperature in (0.0, 0.3, 2.5):
        dreams = DreamVectorEnv(2, temperature=temperature, **settings)
        with patch.object(WorldModel, "step", autospec=True, side_effect=WorldModel.step) as step:
            dreams.reset(seed=0)
            dreams.step([0, 1])
        assert [call.args[4] for call in step.call_args_list] == [temperature]


def test_a_temperature_is_checked_when_dreams_are_made(settings):
    DreamVectorEnv(1, temperature=np.float32(0.5), **settings)
    with pytest.raises(ValueError, match="temperature must be a number of 0 or more, got -1"):
        DreamVectorEnv(1, temperature=-1, **settings)


def test_rewards_are_those_the_prior_expects(settings):
    env = DreamVectorEnv(3, **settings)
    env.reset(seed=0)
    state, actions = env._state, torch.tensor([0, 1, 2])
    expected = env.world.rollout.predict(state, actions)[1].rewards
    np.testing.assert_allclose(env.step(actions)[1], expected.detach(), atol=1e-5)


def test_a_dream_begins_with_real_frames_of_a_training_episode(settings, store):
    env, episodes = DreamVectorEnv(8, **settings), EpisodeStore(store)
    shown = env.reset(seed=0)[0]
    learnt = np.concatenate(
        [episodes.read(entry.number).observations for entry in episodes.entries if entry.number != 9]
    )
    codes = env.world.encode(torch.from_numpy(learnt)).numpy()
    assert all((codes == picture).all((1, 2)).any() for picture in shown)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"observation": "pixels"}, "observation must be 'codes' or 'frame', got 'pixels'"),
        ({"history": 0}, "history must be 1 or more, and 1000 at most, got 0"),
        ({"horizon": 0}, "must be a whole number of 1 or more, got 0"),
        ({"start": "shipped"}, "comes with no clips; use start='store'"),
        ({"start": "elsewhere"}, "start must be"),
        ({"context": 99}, "no episode of 99 frames or more"),
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, wrong, message):
    with pytest.raises(ValueError, match=message):
        DreamVectorEnv(2, **(settings | wrong))


@pytest.mark.slow
def test_a_shipped_world_does_not_bring_the_store_it_learnt_from(store):
    with pytest.raises(ValueError, match="name a store of your own"):
        DreamVectorEnv(1, start="store")
    with pytest.raises(ValueError, match="knows the actions"):
        DreamVectorEnv(1, start="store", store=str(store))


def test_a_dream_can_begin_with_a_whole_episode(settings, store):
    dream = DreamEnv(context=21, **settings)
    first = dream.reset(seed=0)[0]
    learnt, _ = split_held_out(EpisodeStore(store))
    last = [EpisodeStore(store).observations(entry.number, 20, 1) for entry in learnt]
    assert any(np.array_equal(dream.world.encode(frame)[0], first) for frame in last)


def test_steps_need_a_reset_first(settings):
    with pytest.raises(RuntimeError, match="reset"):
        DreamVectorEnv(2, **settings).step([0, 0])
    with pytest.raises(RuntimeError, match="reset"):
        DreamEnv(**settings).step(0)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 1], r"actions must be 3 integers, got int64 \(2,\)"),
        ([[0, 1, 2]], r"actions must be 3 integers, got int64 \(1, 3\)"),
        ([0.0, 1.0, 2.0], "actions must be 3 integers, got float64"),
        ([0, 1, 3], r"actions must be in \[0, 3\), got \[0, 1, 3\]"),
        ([0, -1, 2], r"actions must be in \[0, 3\), got \[0, -1, 2\]"),
    ],
)
@pytest.mark.slow
def test_actions_that_do_not_fit_are_refused_and_the_dreams_go_on(settings, actions, message):
    tried, untouched = (DreamVectorEnv(3, **settings) for _ in range(2))
    for dreams in (tried, untouched):
        dreams.reset(seed=4)
    with pytest.raises(ValueError, match=message):
        tried.step(actions)
    for _ in range(7):  # past the horizon of 5
        for mine, theirs in zip(tried.step([0, 1, 2])[:4], untouched.step([0, 1, 2])[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_seeds_are_integers_of_any_kind_one_or_one_for_each_dream(settings):
    dreams = DreamVectorEnv(2, **settings)
    first = dreams.reset(seed=3)[0]
    for same in (np.int64(3), [3, 4], np.array([3, 4])):
        np.testing.assert_array_equal(dreams.reset(seed=same)[0], first)
    with pytest.raises(ValueError, match="seed must be one number or one for each of 2 dreams, got 3"):
        dreams.reset(seed=[1, 2, 3])
