"""Dreams: the same seed the same dream, real frames first, and errors that help."""

import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch.utils._pytree import tree_leaves

from envs.dream import DreamEnv
from tests.conftest import PRIOR_SIZES, train_config
from worldmodel import media, shipped
from worldmodel.action_script import parse_actions, plan_actions
from worldmodel.dream import add_progress_bar, dream
from worldmodel.episodes.segments import read_clip
from worldmodel.episodes.store import EpisodeStore
from worldmodel.train.dynamics import dynamics
from worldmodel.world_model import WorldModel

NAMES = ("left", "stay", "right")


@pytest.fixture
def model(world_run):
    return WorldModel.load(world_run)


def opening(store, episode: int = 9, length: int = 6):
    frames, taken = read_clip(EpisodeStore(store), episode, 0, length)
    return frames[None], taken[None]


def test_the_same_seed_gives_the_same_dream(model, store):
    actions = torch.tensor([[0, 1, 2, 2, 0, 1, 1, 2]])
    first, again, other = (model.imagine(model.start(*opening(store)), actions, seed) for seed in (3, np.int64(3), 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_of_dreams_is_each_dream_alone(model, store):
    frames, taken = (torch.cat([a, b]) for a, b in zip(opening(store, 9), opening(store, 3), strict=True))
    actions = torch.tensor([[0, 1, 2], [2, 2, 1]])
    both = model.imagine(model.start(frames, taken), actions, seed=5)
    for row in range(2):
        alone = model.imagine(
            model.start(frames[row : row + 1], taken[row : row + 1]), actions[row : row + 1], seed=5 + row
        )
        assert torch.equal(alone[0], both[row])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.slow
def test_many_dreams_are_shared_out_and_stay_what_each_would_be_alone(world_run, threads):
    world = WorldModel.load(world_run, threads=threads)
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (37, 6, 6, 6), generator=random)
    actions = torch.randint(3, (37, 5 + 4), generator=random)
    state = world.start_from_codes(codes, actions[:, :5])
    together = world.imagine(state, actions[:, 5:], seed=3)
    for number in (0, 15, 16, 36):
        alone = world.imagine(
            state.select(slice(number, number + 1)), actions[number : number + 1, 5:], seed=3 + number
        )
        assert torch.equal(alone[0], together[number])
    frames = world.decode(together[:, 0])
    assert torch.equal(world.encode(frames), torch.cat([world.encode(frame[None]) for frame in frames]))


def test_a_dream_decodes_nothing_until_it_is_over(model, store, monkeypatch):
    opened = opening(store)
    monkeypatch.setattr(model.vqvae, "decode", lambda codes: pytest.fail("decoded in the middle of a dream"))
    assert model.imagine(model.start(*opened), torch.tensor([[0, 1]])).shape == (1, 2, 6, 6)


def test_temperature_zero_takes_the_likeliest_codes(model, store):
    actions = torch.tensor([[0, 1, 2]])
    first, second = (model.imagine(model.start(*opening(store)), actions, seed, temperature=0.0) for seed in (0, 1))
    assert torch.equal(first, second)


def test_a_step_tells_reward_and_termination(model, store):
    state = model.start(*opening(store))
    step = model.step(state, torch.tensor([2]), model.uniforms([torch.Generator()]))
    assert step.rewards.shape == step.termination_probs.shape == (1,)
    assert 0 <= step.termination_probs.item() <= 1


def test_a_dream_takes_arrays_lists_and_names(model, store):
    frames, taken = opening(store)
    noise = model.uniforms([torch.Generator().manual_seed(0)])
    expected = model.step(model.start(frames, taken), torch.tensor([2]), noise).codes
    names = [[NAMES[number] for number in taken[0].tolist()]]
    for before, action in ((taken.numpy(), np.array([2])), (taken.tolist(), [2]), (names, ["right"])):
        assert torch.equal(model.step(model.start(frames.numpy(), before), action, noise).codes, expected)
    assert torch.equal(model.start(frames[:, -1:], [[]]).latest_codes, model.start(frames, taken).latest_codes)
    dreamt = [model.imagine(model.start(frames, taken), actions) for actions in ([["right", "left"]], [[2, 0]])]
    assert torch.equal(*dreamt)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (["rigt"], "unknown action 'rigt': expected one of left, stay, right; did you mean 'right'"),
        ([1.0], "actions must be integers or names, got float64"),
        ([1, 1], r"actions must be \(1,\), one for each dream, got \(2,\)"),
        (1, r"actions must be \(1,\), one for each dream, got \(\)"),
    ],
)
def test_actions_that_do_not_fit_a_dream_are_explained(actions, message, model, store):
    with pytest.raises(ValueError, match=message):
        model.step(model.start(*opening(store)), actions, model.uniforms([torch.Generator()]))


def test_a_world_hands_out_its_clips(model, store):
    frames, actions = model.clip(3, length=4)
    recorded = EpisodeStore(store).read(3)
    assert np.array_equal(frames[0], recorded.observations[:4]) and np.array_equal(actions[0], recorded.actions[:3])
    with pytest.raises(ValueError, match="has clips 0 to 11, got 12"):
        model.clip(12)
    with pytest.raises(ValueError, match=r"frames must be uint8 \(B, n, H, W, 3\), got uint8 \(4, 24, 24, 3\)"):
        model.start(frames[0], actions[0])


def test_every_second_dream_can_go_on_alone(model, store):
    state = model.start(*(part.repeat_interleave(4, 0) for part in opening(store)))
    uniforms = model.uniforms([torch.Generator().manual_seed(number) for number in range(4)])
    together = model.step(state, [0, 1, 2, 0], uniforms)
    alone = model.step(state.select(slice(0, None, 2)), [0, 2], uniforms[::2])
    assert torch.equal(alone.codes, together.codes[::2])


def test_a_world_model_keeps_its_weights_when_its_networks_are_trained_on(model, world_run, store):
    networks = WorldModel.load(world_run)
    kept = WorldModel(networks.vqvae, networks.dynamics, model.action_names, world_run)
    uniforms = model.uniforms([torch.Generator().manual_seed(0)])
    before = model.step(model.start(*opening(store)), [0], uniforms).codes
    with torch.no_grad():
        for parameter in networks.dynamics.parameters():
            parameter.add_(5 * torch.randn_like(parameter))
    assert torch.equal(kept.step(kept.start(*opening(store)), [0], uniforms).codes, before)


def test_an_action_that_does_not_exist_is_refused(model, store):
    state = model.start(*opening(store))
    with pytest.raises(ValueError, match=r"actions must be in \[0, 3\), got \[3\]"):
        model.step(state, torch.tensor([3]), model.uniforms([torch.Generator()]))


@pytest.mark.parametrize("suffix", ["gif", "mp4", "png"])
@pytest.mark.slow
def test_a_film_shows_the_real_frames_then_the_imagined_ones(world_run, store, tmp_path, suffix, capsys):
    out = tmp_path / "films" / f"a.{suffix}"
    dream(action="right", frames=4, context=3, world=str(world_run), store=str(store), episode=9, out=str(out))
    assert "3 real and 4 imagined frames" in capsys.readouterr().out
    film = iio.imread(out)
    assert film.shape == (
        (27 * 3, 7 * 24 * 3, 3) if suffix == "png" else (7, *((81, 72) if suffix == "gif" else (80, 72)), 3)
    )


@pytest.mark.parametrize("fps", [8.75, 15, 7.5, 30])
def test_a_gif_keeps_time(tmp_path, fps):
    frames = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    media.write(tmp_path / "a.gif", frames, fps)
    durations = [frame.info["duration"] for frame in ImageSequence.Iterator(Image.open(tmp_path / "a.gif"))]
    assert len(durations) == 40 and sum(durations) == pytest.approx(40_000 / fps, abs=10)


def test_actions_are_repeated_until_there_are_frames_enough():
    known = ("left", "stay", "right")
    assert plan_actions("", "", 0, ("forward",)).tolist() == [0] * 10
    assert plan_actions("right", "", 3, known).tolist() == [2, 2, 2]
    assert plan_actions("", "left:2,right", 0, known).tolist() == [0, 0, 2]
    assert plan_actions("", "left:2,right", 7, known).tolist() == [0, 0, 2, 0, 0, 2, 0]
    assert plan_actions("", "left:2,right", 1, known).tolist() == [0]


@pytest.mark.slow
def test_a_long_dream_needs_no_more_memory_than_a_short_one(model, store):
    state = model.start(*opening(store))
    sizes, random = set(), torch.Generator().manual_seed(0)
    for number in range(300):
        state, codes, rewards, _ = model.step(state, torch.tensor([number % 3]), model.uniforms([random]))
        sizes.add(sum(part.numel() for part in tree_leaves(state)))
        assert rewards.isfinite().all()
        assert not codes.requires_grad
    assert len(sizes) == 1


def test_compare_puts_the_recorded_frames_below_the_dream(world_run, store, tmp_path):
    out = tmp_path / "a.png"
    dream(compare=True, frames=4, context=3, world=str(world_run), store=str(store), episode=9, out=str(out))
    strip = torch.from_numpy(iio.imread(out))[::3, ::3]
    real = EpisodeStore(store).observations(9, 0, 7)
    assert torch.equal(strip[27:], torch.from_numpy(real.transpose(1, 0, 2, 3).reshape(24, 7 * 24, 3)))


@pytest.mark.parametrize("recorded", [False, True])
def test_the_frames_before_a_dream_are_shown_as_the_dream_is_or_as_recorded(
    recorded, model, world_run, store, tmp_path
):
    out = tmp_path / "a.png"
    dream(
        frames=2,
        context=3,
        raw_context=recorded,
        action="stay",
        world=str(world_run),
        store=str(store),
        episode=9,
        out=str(out),
    )
    shown = torch.from_numpy(iio.imread(out))[:72:3, ::3].unflatten(1, (5, 24)).transpose(0, 1)[:3]
    frames = torch.from_numpy(EpisodeStore(store).observations(9, 0, 3).copy())
    assert torch.equal(shown, frames if recorded else model.decode(model.encode(frames)))
    assert not torch.equal(frames, model.decode(model.encode(frames)))


def test_the_bar_grows_and_tells_real_from_imagined():
    marked = add_progress_bar(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), num_real=1)
    assert marked.shape == (4, 11, 8, 3)
    assert marked[:, :8].sum() == 0
    assert marked[2, 8, :, 0].tolist() == [235] * 2 + [255] * 4 + [40] * 2
    assert marked[3, 10, :, 0].tolist() == [235] * 2 + [255] * 6


def test_a_world_that_no_action_changes_says_so(store, vqvae_run, tmp_path, capsys):
    run = str(tmp_path / "world")
    dynamics(str(store), str(vqvae_run), run, PRIOR_SIZES, train_config(1), 2, 6, actions="none")
    dream(world=run, frames=2, out=str(tmp_path / "dream.png"))
    note = f"note: the world {run} was trained without actions or context: actions have no effect"
    assert note in capsys.readouterr().err
    with pytest.raises(ValueError, match="was trained without actions or context, so an agent has no effect on it"):
        DreamEnv(run)


@pytest.mark.parametrize("generators", [[], [None], [3]])
def test_random_numbers_are_never_torchs_own(generators, world_run):
    with pytest.raises(ValueError, match=r"uniforms need a torch.Generator for each dream, got \["):
        WorldModel.load(world_run).uniforms(generators)


@pytest.mark.parametrize("threads", [0, 1025, "2"])
def test_threads_are_a_number_that_a_machine_may_have(threads, world_run):
    with pytest.raises(ValueError, match=rf"threads must be a whole number from 1 to 1024, got {threads!r}"):
        WorldModel.load(world_run, threads=threads)


def test_actions_are_parsed_by_name_and_number():
    assert parse_actions("right:3, left,stay:1", NAMES).tolist() == [2, 2, 2, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rigth:3", "unknown action 'rigth': expected one of left, stay, right; did you mean 'right'?"),
        ("right:x", "'right:x' must be an action, a colon and a number of frames, such as right:10"),
        ("right:0", "'right:0' must be"),
        ("right:²", "'right:²' must be"),
        ("right:99999999999999999999", "must be an action, a colon and a number of frames"),
        ("", "unknown action ''"),
        ("right:1000000,left", "actions must take 1000000 frames or fewer in all, got 1000001 by 'left'"),
    ],
)
def test_actions_that_do_not_parse_are_explained(text, message):
    with pytest.raises(ValueError) as error:
        parse_actions(text, NAMES)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "a.avi"}, "a.avi must end in one of .gif, .mp4, .png"),
        ({"world": "no-such-world"}, "unknown world 'no-such-world': expected one of the folder of a run"),
        ({"frames": -1}, "--frames and --context must be in [1, 1000000], got -1 and 6"),
        ({"frames": 0}, "--frames and --context must be in [1, 1000000], got 0 and 6"),
        ({"action": "left", "compare": True}, "give one of --action, --actions and --compare"),
        ({"episode": 77}, "has no episode 77; its 12 episodes have numbers from 0 to 11"),
        ({"context": 40}, "episode 0 has 21 observations, got 40 from 0 on"),
        ({"temperature": -1.0}, "temperature must be a number of 0 or more"),
        ({"store": "nowhere"}, "nowhere holds no store.json"),
    ],
)
def test_a_mistake_is_explained(world_run, store, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        dream(**{"action": "left", "world": str(world_run), "store": str(store), **arguments})
    assert message in str(error.value)


def test_a_state_of_another_world_is_refused(model, store):
    shipped = WorldModel.load()
    frames, actions = shipped.clip(0)
    stranger = shipped.start(frames, actions)
    with pytest.raises(ValueError, match="the state is not one of this world"):
        model.step(stranger, ["left"], torch.zeros(1, 6, 6))
    mine = model.start(*opening(store))
    with pytest.raises(ValueError, match="the state is not one of this world"):
        model.step(mine._replace(cache_length=torch.zeros(3, dtype=torch.int64)), ["left"], torch.zeros(1, 6, 6))
    with pytest.raises(ValueError, match="state must be what start or a step returned, got int"):
        model.step(3, ["left"], torch.zeros(1, 6, 6))


def test_a_second_dream_leaves_the_first_ones_film(world_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for action in ("left", "right"):
        dream(action, world=str(world_run), frames=1)
    assert {path.name for path in tmp_path.glob("*.gif")} == {"dream.gif", "dream-2.gif"}
    assert "wrote dream-2.gif" in capsys.readouterr().out


def test_a_world_without_forward_dreams_its_first_action(world_run, model, tmp_path):
    dream(world=str(world_run), frames=2, out=str(tmp_path / "default.gif"))
    dream("left", world=str(world_run), frames=2, out=str(tmp_path / "left.gif"))
    assert (tmp_path / "default.gif").read_bytes() == (tmp_path / "left.gif").read_bytes()
    assert plan_actions("", "", None, ("left", "forward")).tolist() == [1] * 10


def test_control_c_keeps_what_was_dreamed(world_run, tmp_path, monkeypatch, capsys):
    steps = WorldModel.imagine_steps

    def interrupted(self, *arguments, **settings):
        yield from islice(steps(self, *arguments, **settings), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(WorldModel, "imagine_steps", interrupted)
    dream(compare=True, world=str(world_run), frames=8, out=str(tmp_path / "a.gif"))
    assert "6 real and 3 imagined frames" in capsys.readouterr().out
    assert len(iio.imread(tmp_path / "a.gif")) == 9


def test_frames_of_another_world_are_noted(world_run, store, tmp_path, capsys):
    other = EpisodeStore.create(tmp_path / "other", replace(EpisodeStore(store).schema, environment="spots"))
    other.append(EpisodeStore(store).read(0))
    dream("left", world=str(world_run), store=str(tmp_path / "other"), frames=1, out=str(tmp_path / "a.gif"))
    assert (
        "note: the world" in (error := capsys.readouterr().err) and "trained on stripes" in error and "spots" in error
    )
    dream("left", world=str(world_run), store=str(store), frames=1, out=str(tmp_path / "a.gif"))
    assert "note" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_prints_one_line_for_a_mistake(tmp_path):
    command = [
        sys.executable,
        "-m",
        "worldmodel.dream",
        "--world",
        "doom-helth-gathering",
        "--out",
        str(tmp_path / "a.gif"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: unknown world 'doom-helth-gathering'")
    assert "did you mean 'doom-health-gathering'?" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_run_dreams_from_the_store_that_it_was_trained_on(world_run, tmp_path):
    dream(action="right", world=str(world_run), out=str(tmp_path / "a.gif"))
    assert (tmp_path / "a.gif").exists()


def test_episodes_with_other_actions_are_refused(model):
    with pytest.raises(ValueError, match="knows the actions"):
        model.check_actions(("left", "right"))


def test_the_default_world_is_shipped_and_small():
    assert shipped.DEFAULT_WORLD in shipped.shipped_worlds()
    files = [path for path in (shipped.PRETRAINED / shipped.DEFAULT_WORLD).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6


@pytest.mark.parametrize("name", shipped.shipped_worlds())
@pytest.mark.slow
def test_a_shipped_world_dreams_its_actions(name, tmp_path):
    out = tmp_path / "dream.gif"
    dream(action=WorldModel.load(name).action_names[-1], world=name, out=str(out))
    assert iio.imread(out).shape == (16, 87 * 3, 84 * 3, 3)


@pytest.mark.slow
def test_a_gif_shows_the_frames_in_their_colours_and_at_their_pace(tmp_path):
    world = WorldModel.load()
    frames, _ = read_clip(EpisodeStore(world.clips_folder), 0, 0, 20)
    film = add_progress_bar(frames, 10).numpy()
    media.write(tmp_path / "film.gif", film, fps=10, scale=2)
    shown = iio.imread(tmp_path / "film.gif")[..., :3]
    error = np.abs(shown.astype(float) - film.repeat(2, 1).repeat(2, 2))
    assert shown.shape == (20, 2 * film.shape[1], 2 * film.shape[2], 3)
    assert error.mean() < 3 and error[:, -4:].mean() < 12, "the bar has colours of its own"
    assert iio.immeta(tmp_path / "film.gif")["duration"] == 100


def test_codes_of_any_whole_type_are_decoded_and_codes_that_there_are_not_are_refused(model):
    codes = np.arange(36).reshape(1, 6, 6) % 16
    for kind in (np.uint16, np.int32, np.uint64):
        assert torch.equal(model.decode(codes.astype(kind)), model.decode(codes))
    for wrong in (codes - 1, codes + 1):
        with pytest.raises(ValueError, match=r"codes must be in \[0, 16\)"):
            model.decode(wrong)


def test_sigterm_keeps_what_was_dreamed_and_still_ends_the_program(world_run, tmp_path, monkeypatch):
    steps = WorldModel.imagine_steps

    def ended(self, *arguments, **settings):
        yield from islice(steps(self, *arguments, **settings), 2)
        raise SystemExit(143)

    monkeypatch.setattr(WorldModel, "imagine_steps", ended)
    with pytest.raises(SystemExit, match="143"):
        dream("left", world=str(world_run), frames=8, out=str(tmp_path / "a.gif"))
    assert len(iio.imread(tmp_path / "a.gif")) == 8


def test_a_folder_named_like_a_shipped_world_is_given_by_its_path(tmp_path, monkeypatch, capsys):
    (tmp_path / "lab-seekavoid").mkdir()
    (tmp_path / "lab-seekavoid" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert shipped.find_world("./lab-seekavoid") == Path("lab-seekavoid")
    assert shipped.find_world("lab-seekavoid") == shipped.PRETRAINED / "lab-seekavoid"
    assert shipped.stable_name("./lab-seekavoid") == str(tmp_path / "lab-seekavoid")
    assert shipped.stable_name("lab-seekavoid") == "lab-seekavoid", "which is not the folder here"
    assert "note: lab-seekavoid is the shipped world; for the folder, give ./lab-seekavoid" in capsys.readouterr().err
