"""The real world with the observations of a dream."""

import numpy as np
import pytest
import torch

from envs.dream import DreamEnv
from envs.encoded import EncodedEnv
from tests.player.serving import STRIPES
from worldmodel.env_wrappers import ResizeFrames


@pytest.mark.parametrize("observation", ["codes", "frame"])
@pytest.mark.slow
@pytest.mark.engine
def test_the_real_world_shows_what_the_dream_shows(observation):
    settings = {"observation": observation, "history": 2}
    real = EncodedEnv("doom-health-gathering", horizon=4, render_mode="rgb_array", **settings)
    dream = DreamEnv(world="doom-health-gathering", **settings)
    assert real.observation_space == dream.observation_space and real.action_space == dream.action_space
    first, _ = real.reset(seed=1)
    channels = {"codes": lambda seen: seen, "frame": lambda seen: np.stack([seen[..., :3], seen[..., 3:]])}[observation]
    assert real.observation_space.contains(first)
    past, present = channels(first)
    assert (past == present).all()
    codes = real.world.encode(torch.from_numpy(real.render())[None])
    expected = codes if observation == "codes" else real.world.decode(codes)
    np.testing.assert_array_equal(present, expected[0])
    seen = [real.step(1) for _ in range(4)]
    np.testing.assert_array_equal(channels(seen[0][0])[0], present)
    assert [step[3] for step in seen] == [False, False, False, True]
    real.close()


@pytest.mark.slow
@pytest.mark.engine
def test_a_real_world_with_other_actions_is_refused():
    with pytest.raises(ValueError, match="knows the actions"):
        EncodedEnv("doom-health-gathering", "envs:Doom-v0", {"actions": ["forward"]})


def test_the_real_world_holds_an_action_and_sums_its_rewards(world_run):
    held = EncodedEnv(str(world_run), STRIPES, {"length": 7}, history=2, action_repeat=3)
    plain = EncodedEnv(str(world_run), STRIPES, {"length": 7})
    held.reset(seed=4)
    plain.reset(seed=4)
    for action, count in ((2, 3), (0, 3), (2, 1)):  # the episode ends with its seventh frame
        seen, reward, terminated, truncated, _ = held.step(action)
        frames = [plain.step(action) for _ in range(count)]
        assert reward == sum(frame[1] for frame in frames) == count * (action == 2)
        assert (terminated, truncated) == frames[-1][2:4] == (count == 1, False)
        np.testing.assert_array_equal(seen[-1], frames[-1][0])
        if count > 1:
            np.testing.assert_array_equal(seen[0], frames[-2][0])


def test_a_real_world_of_other_frames_is_refused_and_closed(world_run, monkeypatch):
    closed = []
    monkeypatch.setattr(ResizeFrames, "close", lambda env: closed.append(env))
    with pytest.raises(ValueError, match=r"dreams frames of \(6, 6\) codes, the episodes have \(12, 12\)"):
        EncodedEnv(str(world_run), STRIPES, {"frame_size": 48})
    assert len(closed) == 1


@pytest.mark.parametrize("setting", [{"horizon": -1}, {"action_repeat": 0}, {"horizon": 2.5}, {"action_repeat": 1.5}])
def test_a_real_world_is_stepped_a_whole_number_of_times(setting):
    with pytest.raises(ValueError, match=rf"{next(iter(setting))} must be a whole number of [01] or more, got"):
        EncodedEnv(**setting)
