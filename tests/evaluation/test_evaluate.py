"""The measures of a dream against worlds whose scores are known: one that is perfect, one that stands still, …"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import PRIOR_SIZES, sliding_stripes, train_config
from worldmodel.episodes.segments import sample_segments
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.evaluate import evaluate
from worldmodel.evaluation import drift, inverse_dynamics, plots
from worldmodel.evaluation.clips import NUM_CONTEXT_FRAMES, Clips, dream_clips, find_action_clips, sample_held_out_clips
from worldmodel.evaluation.open_loop import action_sensitivity, intervals_by_horizon, open_loop
from worldmodel.evaluation.report import Report
from worldmodel.metrics import psnr, ssim
from worldmodel.train.dynamics import dynamics as train_prior

pytestmark = pytest.mark.slow

SETTINGS = {"segments": 8, "length": 10, "clips": 6, "samples": 2, "horizon": 8, "frames": 16, "pairs": 64}


class Film:
    """A world of stripes that knows the rule, and takes ``obey(actions)`` for the actions; a code is a whole frame."""

    action_names = ("left", "stay", "right")

    def __init__(self, obey: Callable[[Tensor], Tensor]) -> None:
        self.obey, self.seen = obey, []
        self.dynamics = SimpleNamespace(config=SimpleNamespace(codebook_size=10_000))
        self.numbers: dict[bytes, int] = {}

    def encode(self, frames: Tensor) -> Tensor:
        numbers = []
        for frame in frames:
            numbers.append(self.numbers.setdefault(frame.numpy().tobytes(), len(self.seen)))
            if numbers[-1] == len(self.seen):
                self.seen.append(frame)
        return torch.tensor(numbers).view(-1, 1, 1)

    def decode(self, codes: Tensor) -> Tensor:
        return torch.stack([self.seen[number] for number in codes.flatten()])

    def start(self, frames: Tensor, actions: Tensor) -> Tensor:
        return frames[:, -1]

    def imagine(self, state: Tensor, actions: Tensor, seed: int, temperature: float) -> Tensor:
        films = []
        for frame, taken in zip(state, self.obey(actions), strict=True):
            for action in taken:
                frame = frame.roll(4 * (int(action) - 1), 1)
                films.append(frame)
        return self.encode(torch.stack(films)).view(*actions.shape, 1, 1)


WORLDS = {
    "perfect": lambda actions: actions,
    "still": torch.ones_like,
    "another's actions": lambda actions: actions.roll(1, 0),
    "deaf": lambda actions: torch.arange(actions.numel()).view_as(actions) * 7 % 3,
}


@pytest.fixture(scope="module")
def stripes(tmp_path_factory) -> EpisodeStore:
    made = EpisodeStore.create(
        tmp_path_factory.mktemp("many") / "store", Schema((24, 24, 3), "uint8", Film.action_names, "stripes")
    )
    for seed in range(80):
        made.append(sliding_stripes(seed))
    return made


@pytest.fixture(scope="module")
def clips(stripes) -> Clips:
    return sample_held_out_clips(stripes, 40, 10, seed=0)


def test_a_perfect_world_scores_as_well_as_can_be(clips):
    world = Film(WORLDS["perfect"])
    scores = open_loop(world, clips, dream_clips(world, clips, clips.future_actions, samples=2))
    assert scores["psnr"]["dream"].shape == (40, 10)
    assert (
        scores["psnr"]["dream"].min()
        == scores["psnr"]["vqvae_reconstruction"].min()
        == psnr(*[clips.future_frames[0]] * 2).min()
    )
    assert torch.allclose(scores["ssim"]["dream"], torch.ones(40, 10))


def test_a_still_world_scores_as_the_last_frame_does(clips):
    world = Film(WORLDS["still"])
    scores = open_loop(world, clips, dream_clips(world, clips, clips.future_actions))
    for measure in ("psnr", "ssim"):
        assert torch.equal(scores[measure]["dream"], scores[measure]["copy_last"])
        assert (scores[measure]["dream"] < scores[measure]["vqvae_reconstruction"]).any()


def test_the_best_of_several_dreams_is_the_one_that_is_best_throughout(clips):
    world = Film(lambda actions: torch.where(torch.arange(len(actions))[:, None] % 2 == 0, actions, 1))
    scores = open_loop(world, clips, dream_clips(world, clips, clips.future_actions, samples=2))["psnr"]
    assert torch.equal(scores["best_dream"], scores["vqvae_reconstruction"]), "one of the two dreams obeys"
    assert torch.allclose(scores["dream"], (scores["vqvae_reconstruction"] + scores["copy_last"]) / 2)


def test_actions_are_worth_nothing_to_a_world_that_ignores_them_and_much_to_one_that_obeys(clips):
    deaf = action_sensitivity(Film(WORLDS["deaf"]), clips, 1.0, seed=0)
    assert deaf[4] == {"mean": 0, "low": 0, "high": 0}
    perfect = action_sensitivity(Film(WORLDS["perfect"]), clips, 1.0, seed=0)
    assert set(perfect) == {1, 4, 10}
    assert perfect[4]["low"] > 10


def test_inverse_dynamics_recovers_the_actions_of_a_world_that_obeys(stripes, clips, monkeypatch):
    scores = {}
    for name in ("perfect", "another's actions"):
        world = Film(WORLDS[name])
        pairs = inverse_dynamics.sample_real_pairs(world, stripes, 1024, seed=0)
        scores[name] = inverse_dynamics.inverse_dynamics(
            world, pairs, clips, dream_clips(world, clips, clips.future_actions)
        )
    obeying, other = scores["perfect"], scores["another's actions"]
    assert obeying["real"]["mean"] > 0.9
    assert obeying["dreamed"] == obeying["vqvae"] == obeying["real"]
    assert obeying["ratio"] == obeying["skill"] == 1
    assert other["real"] == obeying["real"]
    assert other["dreamed"]["high"] < 0.5, "that is chance, among three actions"
    assert other["skill"] < 0.2
    for row in obeying["confusion"]["real"]:
        assert sum(row) == pytest.approx(1)


def test_a_dream_detector_is_sure_of_noisy_pairs_alone(stripes):
    generator = torch.Generator().manual_seed(0)
    pairs = inverse_dynamics.pair_frames(sample_segments(stripes, stripes.entries, 200, 3, seed=0)[0])
    noisy = (pairs + torch.randint(60, pairs.shape, generator=generator)).clamp_max(255).to(torch.uint8)
    detector = inverse_dynamics.train_dream_detector(pairs[:200], noisy[:200])
    real, dreamed, more = (
        inverse_dynamics.log_odds(detector, part) for part in (pairs[200:300], noisy[200:], pairs[300:])
    )
    assert dreamed.mean() - real.mean() > real.std()
    assert abs(more.mean() - real.mean()) < 0.5 * real.std()


@pytest.fixture(scope="module")
def drifts(stripes, tmp_path_factory) -> dict[str, dict]:
    """What drift says of a perfect world, of one that stands still, and of one that ends in a single frame."""
    found = {}
    for name in ("perfect", "still", "stuck"):
        world = Film(WORLDS["perfect" if name == "stuck" else name])
        schema = Schema((1, 1), "uint16", Film.action_names, "stripes")
        codes = EpisodeStore.create(tmp_path_factory.mktemp(name) / "codes", schema)
        for entry in stripes.entries:
            episode = stripes.read(entry.number)
            numbers = world.encode(torch.from_numpy(episode.observations.copy())).numpy().astype(np.uint16)
            codes.append(replace(episode, observations=numbers))
        if name == "stuck":
            world.obey = lambda actions: torch.where(torch.arange(actions.shape[1]) < 20, actions, 1)
        pairs = inverse_dynamics.FramePairs(
            *[inverse_dynamics.pair_frames(sample_segments(stripes, stripes.entries[:40], 100, 3, 1)[0])] * 2, None
        )
        found[name] = drift.drift(world, stripes, codes, pairs.reconstructed, 12, 120, 1.0, seed=0)[0]
    return found


def test_a_perfect_world_is_as_far_from_real_video_as_real_video_is(drifts):
    rows = drifts["perfect"]["rows"]
    assert list(rows) == ["real", 10, 100, 120]
    for horizon in (100, 120):
        assert rows[horizon]["change_rate_error"] == pytest.approx(0, abs=0.1)
        assert rows[horizon]["classifier_auroc"] == pytest.approx(0.5, abs=0.2)
    assert drifts["perfect"]["growth"]["change_rate_error"] < 1.5


def test_a_world_that_stands_still_does_not_change_as_real_video_does(drifts):
    assert (
        drifts["still"]["rows"][100]["change_rate_error"]
        > 0.5
        > 5 * drifts["perfect"]["rows"][100]["change_rate_error"]
    )


def test_a_world_that_gets_stuck_is_found_out_beyond_the_beginning(drifts):
    rows = drifts["stuck"]["rows"]
    assert rows[10]["change_rate_error"] < 0.2 < 0.5 < rows[100]["change_rate_error"]
    assert rows[100]["perplexity"] < 12.01 < rows["real"]["perplexity"], "one frame is left of each dream"


def test_clips_are_held_out_whole_and_the_same_every_time(stripes):
    clips = sample_held_out_clips(stripes, 30, 8, seed=3)
    assert clips.frames.shape == (30, NUM_CONTEXT_FRAMES + 8, 24, 24, 3)
    assert torch.equal(clips.frames, sample_held_out_clips(stripes, 30, 8, seed=3).frames)
    own = {stripes.read(number).observations[0, 0].tobytes() for number in range(9, 80, 10)}
    still = [frame for frame in clips.frames[:, 0] if any(same_stripes(frame, start) for start in own)]
    assert len(still) == 30
    world = Film(WORLDS["perfect"])
    assert torch.equal(
        world.decode(dream_clips(world, clips, clips.future_actions)[:, 0].flatten(0, 1)),
        clips.future_frames.flatten(0, 1),
    )


def same_stripes(frame: Tensor, row: bytes) -> bool:
    """Whether a frame is a shift of the picture whose rows are ``row``."""
    return any(frame[0].roll(4 * shift, 0).numpy().tobytes() == row for shift in range(6))


def test_too_long_a_horizon_is_refused_with_the_longest_episode(stripes):
    with pytest.raises(ValueError, match=r"segments of 56 frames need longer episodes than .* has: at most 21"):
        sample_held_out_clips(stripes, 4, 50, seed=0)


def test_ssim_is_one_for_equal_frames_and_that_of_the_formula_for_flat_ones():
    dark, light = torch.full((1, 24, 24, 3), 50, dtype=torch.uint8), torch.full((1, 24, 24, 3), 100, dtype=torch.uint8)
    assert ssim(dark, dark).item() == pytest.approx(1)
    assert ssim(dark, light).item() == pytest.approx((2 * 5000 + 2.55**2) / (12500 + 2.55**2), rel=1e-3)
    noise = torch.randint(256, (2, 24, 24, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert ssim(noise[:1], noise[1:]).item() == pytest.approx(0, abs=0.1)


def test_growth_counts_what_real_video_scores_as_none():
    real = dict(zip(drift.DISTANCES, (0.1, 0.1, 0.0), strict=True))
    rows = {"real": real, 10: real, 100: {**real, "change_rate_error": 0.05, "classifier_effect_size": 0.2}}
    rows[1000] = dict(zip(drift.DISTANCES, (0.3, 0.01, 0.2), strict=True))
    assert drift.compute_growth(rows) == pytest.approx(dict(zip(drift.DISTANCES, (3, 1, 1), strict=True)))


def test_action_sequences_keep_the_order_of_the_held_out_actions(stripes):
    sequences = drift.sample_action_sequences(stripes, 3, 30, seed=0)
    taken = torch.cat([torch.from_numpy(stripes.read(number).actions.copy()) for number in range(9, 80, 10)])
    assert sequences.shape == (3, 30)
    for sequence in sequences:
        assert any(torch.equal(taken.roll(-shift)[:30], sequence) for shift in range(len(taken)))


def test_every_number_of_a_confusion_matrix_stands_in_its_cell():
    table = [[0.25, 0.75], [0.9, 0.1]]
    axes = plots.plot_confusion_matrices({"real": table}, ("left", "right")).axes[0]
    written = {text.get_position(): float(text.get_text()) for text in axes.texts}
    assert written == {(0.5, 0.5): 0.25, (1.5, 0.5): 0.75, (0.5, 1.5): 0.9, (1.5, 1.5): 0.1}


def test_the_strip_of_an_action_is_where_it_is_held_longest(stripes):
    found = find_action_clips(stripes, plots.STRIP_FRAMES)
    others = sample_held_out_clips(stripes, 60, plots.STRIP_FRAMES, seed=1)
    assert sorted(found) == [0, 1, 2]
    for action, clip in found.items():
        assert len(clip.frames[0]) == NUM_CONTEXT_FRAMES + plots.STRIP_FRAMES
        assert (clip.future_actions == action).sum() >= (others.future_actions == action).sum(1).max() > 0
    episode = stripes.read(int(found[0].episodes))
    pieces = np.lib.stride_tricks.sliding_window_view(episode.actions, found[0].actions.shape[1])
    assert (pieces == found[0].actions.numpy()).all(1).any()


@pytest.fixture(scope="module")
def two_held_out(tmp_path_factory) -> Path:
    """A store whose episodes 9 and 19 are held out."""
    made = EpisodeStore.create(
        tmp_path_factory.mktemp("stripes") / "store", Schema((24, 24, 3), "uint8", ("left", "stay", "right"), "stripes")
    )
    for seed in range(20):
        made.append(sliding_stripes(seed))
    return made.path


def test_a_page_of_something_else_is_not_replaced(two_held_out, vqvae_run, tmp_path):
    (tmp_path / "index.html").write_text("my page")
    with pytest.raises(
        ValueError, match=r"holds an index.html of something else than an evaluation; use another --out"
    ):
        evaluate(str(two_held_out), vqvae=str(vqvae_run), out=str(tmp_path))
    assert (tmp_path / "index.html").read_text() == "my page"


def test_evaluate_writes_a_page_with_every_number_and_picture(
    two_held_out, store, vqvae_run, world_run, tmp_path, monkeypatch, capsys
):
    out, baseline = tmp_path / "page", str(tmp_path / "baseline")
    train_prior(str(store), str(vqvae_run), baseline, replace(PRIOR_SIZES, context_length=0), train_config(1), 2, 6)
    paths = {"store": str(two_held_out), "world": str(world_run), "no_context_prior": baseline, "out": str(out)}
    with pytest.raises(ValueError, match=r"must be trained with --model\.context_length 0, got 4"):
        evaluate(**{**paths, "no_context_prior": str(world_run)}, **SETTINGS)
    evaluate(**paths, **SETTINGS, drift_rollouts=3, drift_horizon=14, episodes=1)
    scores = json.loads((out / "scores.json").read_text())
    assert capsys.readouterr().out.endswith(f"wrote {out / 'index.html'} and scores.json\n")
    expected = {"true_actions", "shuffled_actions", "unigram", "copy_last", "no_context_no_actions"}
    assert set(scores["bits_per_code"]) == expected
    row = scores["bits_per_code"]["true_actions"]
    assert row["bits_per_frame"] == pytest.approx(36 * row["bits_per_code"]["mean"])
    assert list(scores["open_loop"]["psnr"]["dream"]) == ["1", "2", "4", "5", "8"]
    assert set(scores["drift"]["rows"]) == {"real", "10", "14"}
    assert scores["reward_termination"]["termination"]["steps"] == 20
    assert set(scores["reward_termination"]["termination"]["detected"]["0"]) == {"recall", "contrast"}
    rewarded = int((EpisodeStore(two_held_out).read(9).rewards > 0).sum())
    assert scores["reward_termination"]["reward"]["gains"]["steps"] == rewarded > 0
    assert scores["reward_termination"]["reward"]["losses"] == {"auroc": 0.5, "steps": 0}
    assert "objects" not in scores, "nobody knows what is in view"
    assert {path.name for path in out.glob("*.png")} >= {"reconstruction.png", "worst.png", "drift_rollouts.png"}
    page = (out / "index.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == len(list(out.glob("*.png")))
    assert page.count("<svg") == 4
    needed = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')]+)""", page)
    assert all(place.startswith(("data:", "#")) for place in needed), "the page must need nothing from elsewhere"


def test_drift_needs_two_held_out_episodes_to_compare(store, world_run, tmp_path, capsys):
    sizes = {"drift_rollouts": 2, "drift_horizon": 14}
    evaluate(str(store), str(world_run), **{**SETTINGS, **sizes}, only="drift", out=str(tmp_path / "page"))
    assert "note: drift is left out" in capsys.readouterr().out
    assert "drift" not in json.loads((tmp_path / "page" / "scores.json").read_text())


def test_drift_needs_a_training_episode_to_dream_along(tmp_path, world_run, capsys):
    made = EpisodeStore.create(tmp_path / "store", Schema((24, 24, 3), "uint8", Film.action_names, "stripes"))
    for seed in range(20):
        made.append(sliding_stripes(seed, steps=6))
    evaluate(str(made.path), str(world_run), **SETTINGS, only="drift", out=str(tmp_path / "page"))
    assert "note: drift is left out; it needs a training episode of 8 frames or more" in capsys.readouterr().out


def test_a_picture_is_written_beside_the_page_whatever_its_action_is_called(tmp_path):
    scores = {"settings": defaultdict(str), "held_out_episodes": 1}
    images = {"strip_/../../turn left": np.zeros((4, 4, 3), np.uint8)}
    Report("a world", scores, images=images).write(tmp_path / "a" / "b")
    assert {path.name for path in tmp_path.rglob("*.png")} == {"strip________turn_left.png"}
    assert (tmp_path / "a" / "b" / "strip________turn_left.png").exists()


def test_evaluate_measures_the_parts_that_are_asked_for_and_prints_a_table(store, world_run, tmp_path, capsys):
    paths = {"store": str(store), "world": str(world_run)}
    evaluate(**paths, **SETTINGS, only="reward_termination,bits_per_code", out=str(tmp_path / "some"))
    scores = json.loads((tmp_path / "some" / "scores.json").read_text())
    assert set(scores) == {"settings", "held_out_episodes", "bits_per_code", "flip_probability", "reward_termination"}
    printed = capsys.readouterr().out.splitlines()
    (true,) = (line for line in printed if line.startswith("bits per code, true actions"))
    assert float(true.split()[5]) == pytest.approx(
        scores["bits_per_code"]["true_actions"]["bits_per_code"]["mean"], abs=1e-3
    )
    assert len(printed) < 12
    page = (tmp_path / "some" / "index.html").read_text()
    assert (
        "<h2>Bits per code</h2>" in page
        and "<h2>Open-loop prediction</h2>" not in page
        and "<h2>Reconstruction</h2>" not in page
    )
    evaluate(
        **paths, **{**SETTINGS, "horizon": 500}, only="reconstruction", out=str(tmp_path / "one")
    )  # dreams nothing
    for only, message in (
        ("dream", "unknown section 'dream'.* did you mean 'dreams'"),
        ("dreams,", "unknown section ''"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(**paths, **SETTINGS, only=only)
    with pytest.raises(ValueError, match="--only drift needs a --world"):
        evaluate(store=str(store), vqvae=str(world_run / "vqvae"), only="drift")


def test_a_quick_evaluation_measures_no_more_than_its_limits(store, world_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(str(store), str(world_run), only="reconstruction", frames=4)
    evaluate(str(store), str(world_run), horizon=8, length=10, clips=3, quick=True)
    scores = json.loads((tmp_path / "evaluation-2" / "scores.json").read_text())
    assert "actions" not in json.loads((tmp_path / "evaluation" / "scores.json").read_text()), "nothing is overwritten"
    settings = scores["settings"]
    assert (settings["clips"], settings["samples"], settings["pairs"], settings["frames"]) == (3, 1, 1024, 256)
    assert "actions" in scores and "drift" not in scores and "objects" not in scores
    page = (tmp_path / "evaluation-2" / "index.html").read_text()
    assert "3 clips,\n1 dream each" in page and "1 held-out episode of" in page


def test_a_strip_marks_where_the_dream_begins():
    films = torch.zeros(2, 5, 8, 8, 3, dtype=torch.uint8)
    picture = plots.draw_comparison(films, films, 2)
    assert picture.shape == (32, 5 * 8 + plots.DREAM_LINE_WIDTH, 3)
    assert (picture[:, 16 : 16 + plots.DREAM_LINE_WIDTH] == plots.DREAM_LINE_COLOR).all()
    assert (
        not (picture[:, :16] == plots.DREAM_LINE_COLOR).all(-1).any()
        and not (picture[:, 18:] == plots.DREAM_LINE_COLOR).all(-1).any()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 6}, "--length must be more than 6"),
        ({"horizon": 1}, "--horizon more than 1"),
        ({"segments": 9}, "--segments must be a multiple of 4, which swap their actions, got 9"),
        ({"episodes": 0}, "--episodes, --pairs 1 or more"),
        ({"drift_horizon": 1}, "--drift_horizon must be 2 or more, got 1"),
        ({"horizon": 30}, "segments of 36 frames need longer episodes than .* at most 21"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused_at_once(store, world_run, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**{"store": str(store), "world": str(world_run), "out": str(tmp_path / "out"), **SETTINGS, **changes})
    assert not (tmp_path / "out").exists()


def test_a_vqvae_can_be_measured_alone(store, vqvae_run, tmp_path):
    evaluate(str(store), vqvae=str(vqvae_run), frames=16, out=str(tmp_path))
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {"settings", "held_out_episodes", "reconstruction"}
    assert scores["reconstruction"]["bits_per_frame"] == 36 * 4


def test_horizons_beyond_the_dream_are_left_out():
    assert list(intervals_by_horizon(torch.zeros(3, 9), torch.arange(3))) == [1, 2, 4, 5, 8]


def test_a_page_is_written_under_any_locale(store, vqvae_run, tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning:worldmodel"]
    flags = {"store": store, "vqvae": vqvae_run, "frames": 4, "out": tmp_path / "páge"}
    done = subprocess.run(
        [*command, "-m", "worldmodel.evaluate", *(f"--{name}={value}" for name, value in flags.items())],
        env={**os.environ, **locale},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "perplexity" in (tmp_path / "páge" / "index.html").read_text("utf-8")
