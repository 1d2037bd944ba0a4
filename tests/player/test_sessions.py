"""What is played, without a server."""

import io
import zipfile
from dataclasses import asdict, replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.conftest import sliding_stripes
from tests.player.serving import STRIPES, Pusher, StripesWorld, world_with_ends
from worldmodel import env_wrappers
from worldmodel.episodes.collect import collect, play_episode
from worldmodel.episodes.segments import SegmentSampler, split_held_out
from worldmodel.episodes.store import EpisodeStore
from worldmodel.metrics import frame_bits_per_code
from worldmodel.player.beside import FIRST_FRAMES, BesideSession, last_frame_surprise
from worldmodel.player.factory import SessionFactory
from worldmodel.player.film import MAX_FILM_STEPS
from worldmodel.player.record import RecordSession
from worldmodel.player.sessions import DreamSession, Start
from worldmodel.player.watch import AGENT, WatchedSession
from worldmodel.world_model import WorldModel

ACTIONS = ["right", "left", "stay", "right", "right"]


@pytest.fixture(scope="module")
def world(world_run) -> WorldModel:
    return WorldModel.load(world_run)


@pytest.fixture(scope="module")
def endless(world_run, tmp_path_factory) -> WorldModel:
    return WorldModel.load(world_with_ends(world_run, tmp_path_factory.mktemp("worlds") / "endless", -50))


@pytest.fixture(scope="module")
def deadly(world_run, tmp_path_factory) -> WorldModel:
    return WorldModel.load(world_with_ends(world_run, tmp_path_factory.mktemp("worlds") / "deadly", 50))


def test_a_dream_is_the_one_that_imagine_gives_for_the_seed(endless):
    session = DreamSession(endless)
    session.start(Start(seed=5, clip=2, temperature=0.8))
    played = np.stack([session.step(action).frame for action in ACTIONS])
    codes = endless.imagine(endless.start(*endless.clip(2)), [ACTIONS], seed=5, temperature=0.8)
    np.testing.assert_array_equal(played, endless.decode(codes[0]).numpy())


def test_the_seed_decides_the_clip_the_frames_and_the_end(world):
    def play(seed: int) -> list:
        session = DreamSession(world)
        views = [session.start(Start(seed))]
        while not views[-1].end and len(views) < 30:
            views.append(session.step("right"))
        return [(view.frame.tobytes(), view.reward, view.termination_prob, view.end) for view in views]

    assert play(1) == play(1)
    assert play(1) != play(2)


def test_an_end_is_an_end_until_the_next_start(deadly):
    session = DreamSession(deadly)
    with pytest.raises(ValueError, match="the episode is not started: start anew"):
        session.step("left")
    session.start(Start())
    view = session.step("left")
    assert (view.end, view.step) == ("terminated", 1)
    assert view.termination_prob > 0.99
    with pytest.raises(ValueError, match=r"the episode is over \(terminated\): start anew"):
        session.step("left")
    assert session.start(Start()).end == ""


def test_a_picture_can_be_the_start(endless):
    session, picture = DreamSession(endless), sliding_stripes(3).observations[0]
    assert session.start(Start(picture=picture)).frame.shape == (24, 24, 3)
    assert session.step("left").step == 1
    with pytest.raises(ValueError, match=r"the picture must be \(24, 24, 3\) like the world's frames, got \(8, 8, 3\)"):
        session.start(Start(picture=np.zeros((8, 8, 3), np.uint8)))


def test_wrong_starts_and_actions_are_refused_and_the_session_goes_on(endless):
    session = DreamSession(endless)
    session.start(Start())
    with pytest.raises(ValueError, match="unknown action 'fly': expected one of left, stay, right"):
        session.step("fly")
    with pytest.raises(ValueError, match="clip must be from 0 to 11, got 12"):
        session.start(Start(clip=12))
    assert session.step("stay").step == 1
    for wrong in ({"seed": -1}, {"seed": "1"}, {"temperature": -1}, {"temperature": "hot"}, {"clip": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            Start(**wrong)


def test_a_film_is_saved_as_gif_mp4_and_episode(endless, tmp_path):
    session = DreamSession(endless)
    session.start(Start())
    with pytest.raises(ValueError, match="an episode has one step or more"):
        session.film.save("episode")
    views = [session.step(action) for action in ACTIONS]
    assert iio.imread(session.film.save("gif"), extension=".gif").shape == (6, 72, 72, 3)
    assert iio.imread(session.film.save("mp4"), extension=".mp4").shape == (6, 72, 72, 3)
    zipfile.ZipFile(io.BytesIO(session.film.save("episode"))).extractall(tmp_path)
    (episode,) = EpisodeStore(tmp_path / "episode")
    np.testing.assert_array_equal(episode.observations[1:], [view.frame for view in views])
    assert episode.actions.tolist() == [2, 0, 1, 2, 2]
    assert (episode.terminated, episode.truncated) == (False, True)
    with pytest.raises(ValueError, match=r"unknown kind of film '../x': expected one of gif, mp4, episode"):
        session.film.save("../x")


def test_a_film_keeps_the_last_minutes_only(endless):
    session = DreamSession(endless)
    view = session.start(Start())
    for _ in range(MAX_FILM_STEPS + 10):
        session.film.add(view, 0, 0.0)
    assert len(session.film) == MAX_FILM_STEPS


def test_played_episodes_are_recorded_like_collected_ones(tmp_path):
    session = RecordSession(STRIPES, {}, str(tmp_path / "mine"), seed=7)
    session.start(Start())
    while not session.step("right").end:
        pass
    session.start(Start())  # the first one is kept already
    session.step("left")
    session.start(Start())  # cuts the second one off
    session.start(Start())  # one without a step is nothing
    session.step("stay")
    session.close()
    collect(str(tmp_path / "random"), STRIPES, episodes=3, seed=7)
    mine, random = EpisodeStore(tmp_path / "mine"), EpisodeStore(tmp_path / "random")
    assert [(entry.steps, entry.terminated, entry.truncated) for entry in mine.entries] == [
        (30, True, False),
        (1, False, True),
        (1, False, True),
    ]
    assert [entry.seed for entry in mine.entries] == [entry.seed for entry in random.entries]
    assert mine.schema.provenance == {**random.schema.provenance, "policy": "human"}
    assert mine.read(0).rewards.sum() == 30
    assert not any(problem for _, problem in mine.verify())
    batch = SegmentSampler(mine, split_held_out(mine)[0], batch_size=2, length=4, seed=0)(0)
    assert batch[0].shape == (2, 4, 24, 24, 3)
    again = RecordSession(STRIPES, {}, str(tmp_path / "mine"), seed=7)
    assert again.note == "recorded: 3 episodes, 35 frames"
    again.close()
    with pytest.raises(ValueError, match="holds episodes with provenance"):
        RecordSession(STRIPES, {}, str(tmp_path / "random"), seed=7)


@pytest.mark.parametrize("beside", [False, True])
def test_a_saved_episode_has_the_real_frames_that_were_drawn_and_who_played(world, beside, tmp_path, monkeypatch):
    step = StripesWorld.step

    def draw_no_end(self, action):
        observation, reward, over, cut, info = step(self, action)
        return observation, reward, over, cut, {"final_observation_missing": True} if over else info

    monkeypatch.setattr(StripesWorld, "step", draw_no_end)
    players = {"policy": "human+agent", "weights": "abc"}
    if beside:
        session = BesideSession(world, STRIPES, {"length": 12}, players)
    else:
        session = RecordSession(STRIPES, {"length": 12}, provenance=players)
    views = [session.start(Start())]
    while not views[-1].end:
        views.append(session.step("right"))
    zipfile.ZipFile(io.BytesIO(session.film.save("episode"))).extractall(tmp_path)
    store = EpisodeStore(tmp_path / "episode")
    assert (store.schema.environment, store.schema.kwargs) == (STRIPES, {"length": 12})
    assert players.items() <= store.schema.provenance.items()
    drawn = [view.truth if beside else view.frame for view in views[:-1]]
    np.testing.assert_array_equal(next(iter(store)).observations, drawn)
    assert len(next(iter(store))) == len(drawn) == len(views) - 1
    session.close()


def test_the_surprise_beside_a_dream_is_the_bits_per_code_of_the_real_frame(world):
    session = BesideSession(world, STRIPES)
    frames, views = [session.start(Start(seed=3)).truth], []
    for action in ACTIONS:
        views.append(session.step(action))
        frames.append(views[-1].truth)
    actions = torch.tensor([[1] * (FIRST_FRAMES - 1) + [world.action_names.index(name) for name in ACTIONS]])
    wait = session._waiting
    first = play_episode(env_wrappers.make_env(STRIPES), lambda frame: wait, 3, FIRST_FRAMES - 1).observations
    codes = world.encode(np.concatenate([first, np.stack(frames[1:])]))
    actions[:, : FIRST_FRAMES - 1] = session._waiting
    expected = frame_bits_per_code(world.dynamics, codes[None], actions)[0, FIRST_FRAMES - 1 :]
    torch.testing.assert_close(torch.tensor([view.surprise for view in views]), expected, atol=1e-4, rtol=1e-4)
    assert all(0 < view.psnr < 70 for view in views)
    assert views[-1].reward == 3
    session.close()


def test_beside_ends_when_the_real_episode_does(world):
    session = BesideSession(world, STRIPES)
    session.start(Start())
    views = [session.step("right") for _ in range(30 - FIRST_FRAMES + 1)]
    assert [view.end for view in views] == [""] * 22 + ["terminated"]
    assert iio.imread(session.film.save("gif"), extension=".gif").shape[1:] == (72, 144, 3)
    session.close()


def test_beside_says_that_an_episode_is_too_short_to_dream_from(world):
    session = BesideSession(world, STRIPES, {"length": FIRST_FRAMES - 3})
    with pytest.raises(ValueError, match="the episode ended within 8 frames: start with another seed"):
        session.start(Start())
    session.close()


def test_arguments_are_added_to_those_of_the_recorded_environment(world, monkeypatch):
    monkeypatch.setattr("worldmodel.player.beside.recorded_environment", lambda world: (STRIPES, {"length": 3}))
    session = BesideSession(world, env_kwargs={"length": 12})
    session.start(Start())
    session.close()
    with pytest.raises(ValueError, match="the episode ended"):
        BesideSession(world).start(Start())


def test_the_surprise_of_one_frame_needs_a_window_only(world):
    episode = sliding_stripes(2)
    codes, actions = world.encode(episode.observations), episode.actions.tolist()
    whole = last_frame_surprise(world, codes, actions)
    window = max(world.dynamics.config.context_length, 2)
    assert last_frame_surprise(world, codes[-window - 1 :], actions[-window:]) == pytest.approx(whole, rel=1e-4)


def test_a_factory_says_what_contradicts(world_run, tmp_path):
    with pytest.raises(ValueError, match="--beside starts from the real environment, got --store"):
        SessionFactory(str(world_run), store="x", beside=True)
    with pytest.raises(ValueError, match=r"--env.NAME needs an environment"):
        SessionFactory(str(world_run), env_kwargs={"size": 1})
    with pytest.raises(FileNotFoundError, match=r"holds no store.json"):
        SessionFactory(str(world_run), store=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="doom-health-gathering"):
        SessionFactory("doom-helth")
    factory = SessionFactory(str(world_run))
    assert next(iter(factory.worlds)) == "world"
    with pytest.raises(ValueError, match=r"unknown world '../..': expected one of world, doom-health-gathering"):
        factory.open("../..")
    with pytest.raises(ValueError, match=r"names no environment|cannot make --env"):
        SessionFactory(str(world_run), beside=True).open()


def test_the_pace_is_that_of_the_engine():
    assert WorldModel.load("doom-health-gathering").frame_rate == 8.75
    assert env_wrappers.recorded_rate({"environment": "envs:Lab-v0", "kwargs": {"fps": 60}}) == 15
    assert env_wrappers.recorded_rate({"environment": "envs:Lab-v0"}) == 7.5
    assert env_wrappers.recorded_rate({"environment": "Labyrinth-v0"}) == 10
    for damaged in (-5, 0, float("inf"), float("nan"), [1], "9", True, None):
        assert env_wrappers.recorded_rate({"provenance": {"render_fps": damaged}}) == 10


def test_the_pace_of_any_other_environment_is_its_render_fps(tmp_path, monkeypatch):
    monkeypatch.setattr(StripesWorld, "metadata", {**StripesWorld.metadata, "render_fps": 50})
    store, plain = tmp_path / "store", tmp_path / "older"
    collect(str(store), STRIPES, episodes=1, max_episode_steps=5)
    schema = EpisodeStore(store).schema
    assert env_wrappers.recorded_rate(asdict(schema)) == 50 == RecordSession(STRIPES, {}).rate
    older = {name: value for name, value in schema.provenance.items() if name != "render_fps"}
    EpisodeStore.create(plain, replace(schema, provenance=older)).append(EpisodeStore(store).read(0))
    collect(str(plain), STRIPES, episodes=2, max_episode_steps=5)  # a store without the rate can be continued
    assert len(EpisodeStore(plain)) == 2 and env_wrappers.recorded_rate(asdict(EpisodeStore(plain).schema)) == 10


@pytest.mark.engine
@pytest.mark.slow
def test_doom_is_dreamed_beside_doom():
    session = BesideSession(WorldModel.load("doom-health-gathering"))
    start = session.start(Start(seed=1))
    views = [session.step("look_left") for _ in range(3)]
    assert start.truth.shape == start.frame.shape == (84, 84, 3)
    assert all(view.psnr > 15 and 0 < view.surprise < 9 for view in views)
    session.close()


def test_an_agent_plays_until_the_player_takes_over(endless):
    alone, watched = DreamSession(endless), WatchedSession(DreamSession(endless), policy := Pusher(), "pusher")
    assert (watched.agent, alone.agent) == ("pusher", "")
    views = [watched.start(Start(seed=4)), *(watched.step(action) for action in (AGENT, AGENT, "stay", AGENT))]
    alone.start(Start(seed=4))
    expected = [alone.step(action) for action in ("right", "left", "stay", "left")]
    assert [view.chosen for view in views] == ["", "right", "left", "", "left"]
    for view, same in zip(views[1:], expected, strict=True):
        np.testing.assert_array_equal(view.frame, same.frame)
    np.testing.assert_array_equal(np.stack(policy.seen), np.stack([view.frame for view in views[:-1]]))
    with pytest.raises(ValueError, match="unknown action 'agent'"):
        alone.step(AGENT)


def test_beside_the_truth_an_agent_sees_the_truth(endless):
    session = WatchedSession(BesideSession(endless, STRIPES), policy := Pusher(), "pusher")
    first = session.start(Start(seed=1))
    session.step(AGENT)
    np.testing.assert_array_equal(policy.seen[0], first.truth)
    session.close()


def test_an_agent_of_other_actions_cannot_play(endless):
    other = Pusher()
    other.action_names = ("left", "right")
    with pytest.raises(ValueError, match="the agent pusher knows"):
        WatchedSession(DreamSession(endless), other, "pusher")
    other = Pusher()
    other.frame_shape = (84, 84, 3)
    session = WatchedSession(DreamSession(endless), other, "pusher")
    with pytest.raises(ValueError, match=r"acts on frames \(84, 84, 3\), the environment has \(24, 24, 3\)"):
        session.start(Start())
