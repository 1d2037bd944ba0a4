"""The gated PixelCNN sees all that comes before and nothing else; drawing with what is kept is drawing without."""

import math
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import VQVAE_SIZES, train_config
from tests.test_training import interrupt_after, lines
from worldmodel import checkpoint, painter
from worldmodel.benchmarks.peers import sample_by_full_passes
from worldmodel.codes import CodedPictures, coded
from worldmodel.core.pixelcnn import PixelCNN
from worldmodel.core.prior import CodeBatch, SpatialPrior, SpatialPriorConfig, nats_per_code
from worldmodel.core.wavefront import WavefrontNet
from worldmodel.data.images import open_images
from worldmodel.data.store import EpisodeStore
from worldmodel.painter import Painter
from worldmodel.sample import sample
from worldmodel.train import pixelcnn, vqvae

CODES, CHANNELS = 16, 12
SMALL = SpatialPriorConfig(hidden=12, layers=3, dropout=0.1)
NETS = {
    "pixelcnn": lambda: PixelCNN(nn.Embedding(CODES, 8), CHANNELS, hidden=8, layers=4),
    "pixelcnn of 5": lambda: PixelCNN(nn.Embedding(CODES, 8), CHANNELS, hidden=8, layers=2, kernel=5),
    "wavefront": lambda: WavefrontNet(nn.Embedding(CODES, 8), CHANNELS, hidden=8, layers=3),
}


@pytest.fixture(autouse=True)
def same_chance() -> None:
    torch.manual_seed(0)


def made(name: str) -> nn.Module:
    """A net whose codes depend on each other more than those of a fresh one."""
    net = NETS[name]().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.5)
    return net


def seen(net: nn.Module, height: int, width: int) -> Tensor:
    """What the logits of each position depend on, (H·W, H·W) bool: row by row the positions, in columns the codes."""
    codes, embedded = torch.randint(CODES, (1, height, width)), []
    hook = net.embedding.register_forward_hook(lambda *called: embedded.append(called[2]))
    logits = net(codes, torch.randn(1, height, width, CHANNELS)).flatten(0, 2)  # (H·W, K)
    hook.remove()
    weights = torch.randn(CODES)  # the sum of all logits might depend on less
    rows = [torch.autograd.grad(logit @ weights, embedded[0], retain_graph=True)[0] for logit in logits]
    return torch.stack(rows).abs().sum((1, 4)).flatten(1) > 0


@pytest.mark.parametrize(("height", "width"), [(4, 6), (6, 4), (1, 5), (5, 1)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_position_depends_on_every_code_before_it_and_on_no_other(height, width, kernel):
    net = PixelCNN(nn.Embedding(CODES, 24), CHANNELS, hidden=8, layers=6, kernel=kernel)
    before = torch.ones(height * width, height * width, dtype=torch.bool).tril(-1)
    assert torch.equal(seen(net, height, width), before)


def test_a_shallow_net_sees_as_far_as_its_kernels_reach():
    height, width, layers = 6, 9, 2
    found = seen(PixelCNN(nn.Embedding(CODES, 24), CHANNELS, hidden=8, layers=layers), height, width)
    expected = torch.zeros_like(found)
    for place in range(height * width):
        row, column = divmod(place, width)
        for other in range(place):
            up, left = row - other // width, column - other % width
            expected[place, other] = up <= layers and -layers <= left <= layers
    assert torch.equal(found, expected)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 5, 7), (3, 7, 5), (2, 1, 6), (2, 6, 1)])
@pytest.mark.parametrize("name", NETS)
def test_codes_drawn_with_what_is_kept_are_those_of_full_passes(name, batch, height, width, temperature):
    net, condition = made(name), torch.randn(batch, height, width, CHANNELS)
    uniforms = torch.rand(batch, height, width)
    codes = sample_by_full_passes(net, condition, uniforms, temperature)
    assert torch.equal(net.sample(condition, uniforms, temperature), codes)
    assert codes.unique().numel() > 1


@pytest.mark.parametrize("name", NETS)
def test_two_grids_at_once_are_each_what_they_are_alone(name):
    net, condition = made(name), torch.randn(2, 4, 6, CHANNELS)
    codes, uniforms = torch.randint(CODES, (2, 4, 6)), torch.rand(2, 4, 6)
    logits, drawn = net(codes, condition), net.sample(condition, uniforms)
    for number in range(2):
        one = slice(number, number + 1)
        assert torch.allclose(net(codes[one], condition[one]), logits[one], atol=1e-5)
        assert torch.equal(net.sample(condition[one], uniforms[one]), drawn[one])


def test_every_layer_is_told_the_condition_at_its_own_position():
    net = PixelCNN(nn.Embedding(CODES, 8), CHANNELS, hidden=8, layers=3)
    condition = torch.randn(1, 4, 5, CHANNELS, requires_grad=True)
    logits = net(torch.randint(CODES, (1, 4, 5)), condition)
    told = torch.autograd.grad(logits[0, 2, 2].sum(), condition)[0].abs().sum(-1)[0] > 0
    assert told[2, 2] and told[1, 3] and told[2, 3] and not told[3].any(), "rows above and beside, none below"
    shared = torch.randn(1, 4, 5, CHANNELS)
    codes = torch.randint(CODES, (3, 4, 5))
    assert torch.allclose(net(codes, shared), net(codes, shared.expand(3, -1, -1, -1)), atol=1e-6)


def test_sizes_that_make_no_net_are_refused():
    for layers, kernel in ((1, 3), (4, 1), (4, 4)):
        with pytest.raises(ValueError, match=f"odd kernel of 3 or more, got {layers} and {kernel}"):
            PixelCNN(nn.Embedding(CODES, 8), CHANNELS, 8, layers, kernel)


def tiny(**more) -> SpatialPrior:
    return SpatialPrior(SpatialPriorConfig(codes=CODES, grid=(4, 6), dim=8, hidden=8, layers=3, **more))


@pytest.mark.parametrize("net", ["pixelcnn", "wavefront"])
def test_the_class_changes_what_is_expected(net):
    prior = tiny(net=net, classes=3).eval()
    codes, labels = torch.randint(CODES, (2, 4, 6)), torch.tensor([0, 2])
    bits = prior.bits(CodeBatch(codes, labels))
    assert not torch.isclose(bits, prior.bits(CodeBatch(codes, 2 - labels))).any()
    uniforms = torch.rand(1, 4, 6).expand(3, -1, -1)
    drawn = prior.sample(torch.arange(3), uniforms)
    assert drawn.unique(dim=0).shape == (3, 4, 6)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        prior.sample(torch.tensor([3]), uniforms[:1])
    with pytest.raises(ValueError, match=r"\(B, 4, 6\) codes .* got \(3, 4, 6\) for 2 labels"):
        prior.sample(torch.arange(2), uniforms)


def test_a_prior_without_classes_does_not_look_at_labels():
    prior, codes = tiny().eval(), torch.randint(CODES, (2, 4, 6))
    assert torch.equal(prior.bits(CodeBatch(codes, torch.tensor([0, 0]))), prior.bits(CodeBatch(codes, labels_of(2))))


def labels_of(count: int) -> Tensor:
    return torch.arange(count) + 7


def test_the_loss_is_the_nats_of_the_codes_and_bits_are_those_over_ln_2():
    prior, codes = tiny(classes=2), torch.randint(CODES, (3, 4, 6))
    batch = CodeBatch(codes, torch.tensor([0, 1, 1]))
    loss, metrics = prior(batch)
    logits = prior.net(codes, prior.position + prior.label(batch.labels)[:, None, None])
    assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 2), codes.flatten()).item(), rel=1e-5)
    assert metrics["bits_per_code"].item() == pytest.approx(loss.item() / math.log(2), rel=1e-5)
    assert prior.bits(batch).mean().item() == pytest.approx(metrics["bits_per_code"].item(), rel=1e-5)


def test_several_draws_are_learnt_as_the_average_of_their_one_hot_vectors():
    logits, draws = torch.randn(2, 4, 6, CODES), torch.randint(CODES, (2, 5, 4, 6))
    average = F.one_hot(draws, CODES).float().mean(1)  # (B, H, W, K)
    by_hand = -(average * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(nats_per_code(logits, draws), by_hand, atol=1e-5)


def test_of_several_draws_one_is_what_came_before():
    prior, draws = tiny().eval(), torch.randint(CODES, (1, 3, 4, 6))
    possible = []
    for known in draws[0]:
        logits = prior.net(known[None], prior.position[None])
        possible.append(nats_per_code(logits, draws).mean().item())
    found = set()
    for seed in range(20):
        loss, _ = prior(CodeBatch(draws, torch.zeros(1, dtype=torch.int64)), torch.Generator().manual_seed(seed))
        found.add(min(range(3), key=lambda number: abs(possible[number] - loss.item())))
        assert min(abs(value - loss.item()) for value in possible) < 1e-5
    assert found == {0, 1, 2}


def test_dropout_is_of_the_generator_and_of_training_alone():
    prior, codes = tiny(dropout=0.5), torch.randint(CODES, (2, 4, 6))
    batch = CodeBatch(codes, torch.zeros(2, dtype=torch.int64))
    first, again, other = (prior(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert first == again != other
    assert prior.eval()(batch)[0] == prior(batch)[0]
    with pytest.raises(ValueError, match=r"for --model\.net pixelcnn or wavenet, got 0\.5 with wavefront"):
        tiny(net="wavefront", dropout=0.5)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures, of red and yellow stripes and of blue and cyan ones, on black and green."""
    folder, random = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for number in range(40):
        label = ("blue", "red")[number % 2]
        picture = np.zeros((24, 24, 3), np.uint8)
        picture[..., [2 * (label == "blue"), 1]] = 255 * random.integers(0, 2, (1, 6, 2)).repeat(4, 1)
        (folder / label).mkdir(exist_ok=True)
        iio.imwrite(folder / label / f"{number:02d}.png", picture)
    return folder


@pytest.fixture(scope="module")
def tokenizer_run(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vqvae"
    train = replace(train_config(100), learning_rate=4e-3)
    vqvae(str(run), images=str(coloured), model=VQVAE_SIZES, train=train, batch=8)
    assert lines(run)[-1]["codes_used"] > 4
    return run


def learn(tokenizer_run: Path, run: Path, steps: int = 6, **more) -> list[dict]:
    """Train a small prior; what it measured on held-out pictures."""
    train = replace(train_config(steps), learning_rate=1e-2)
    pixelcnn(str(tokenizer_run), str(run), model=SMALL, train=train, batch=8, **more)
    return [row for row in lines(run) if row["part"] == "held_out"]


@pytest.fixture(scope="module")
def painter_run(coloured: Path, tokenizer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "painter"
    learn(tokenizer_run, run, 60, images=str(coloured))
    return run


def test_a_prior_learns_more_than_how_often_codes_come(painter_run):
    measured = [row for row in lines(painter_run) if row["part"] == "held_out"]
    assert measured[-1]["bits_per_code"] < 0.9 * measured[-1]["bits_per_code_unigram"]
    assert measured[-1]["bits_per_code"] < measured[-1]["bits_per_code_wrong_class"]
    assert iio.imread(painter_run / "pictures" / "0000060.png").shape == (4 * 24, 4 * 24, 3)
    settings = yaml.safe_load((painter_run / "config.yaml").read_text())
    assert settings["kind"] == "pixelcnn" and settings["data"]["classes"] == ["blue", "red"]
    assert checkpoint.load_spatial(painter_run).config.grid == (6, 6)


def test_frames_of_a_store_have_no_classes_and_are_encoded_once(store, vqvae_run, tmp_path):
    measured = learn(vqvae_run, tmp_path / "run", store=str(store))
    assert "bits_per_code_wrong_class" not in measured[-1]
    assert checkpoint.load_spatial(tmp_path / "run").config.classes == 0
    kept = EpisodeStore(store / "codes" / checkpoint.digest(vqvae_run))
    assert len(kept) == len(EpisodeStore(store))


def test_the_frames_of_several_stores_are_classes_and_are_encoded_once(store, vqvae_run, tmp_path):
    for name in ("far", "near"):
        shutil.copytree(store, tmp_path / "stores" / name, ignore=shutil.ignore_patterns("codes"))
    learn(vqvae_run, tmp_path / "run", images=str(tmp_path / "stores"))
    assert Painter.load(tmp_path / "run").classes == ("far", "near")
    pictures, network = open_images(tmp_path / "stores").learnt, checkpoint.load_vqvae(vqvae_run)
    codes, chosen = coded(pictures, vqvae_run, torch.device("cpu")), np.array([0, 300, 5])
    there = EpisodeStore(tmp_path / "stores" / "near" / "codes" / checkpoint.digest(vqvae_run))
    assert len(there) == len(EpisodeStore(store))
    assert np.array_equal(codes.read(chosen), network.encode(torch.from_numpy(pictures.read(chosen))))
    assert np.array_equal(codes.labels, pictures.labels)


@pytest.mark.parametrize("more", [{"classes": False}, {"samples": 3}], ids=str)
def test_classes_can_be_kept_from_it_and_targets_drawn(more, coloured, tokenizer_run, tmp_path):
    measured = learn(tokenizer_run, tmp_path / "run", images=str(coloured), **more)
    assert math.isfinite(measured[-1]["bits_per_code"])
    assert checkpoint.load_spatial(tmp_path / "run").config.classes == (0 if "classes" in more else 2)


def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(coloured, tokenizer_run, tmp_path, monkeypatch):
    dropping = {"images": str(coloured), "samples": 2}
    learn(tokenizer_run, tmp_path / "whole", **dropping)
    with monkeypatch.context() as patched:
        interrupt_after(5, patched)
        with pytest.raises(KeyboardInterrupt):
            learn(tokenizer_run, tmp_path / "parts", **dropping)
    learn(tokenizer_run, tmp_path / "parts", **dropping)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    whole, parts = (checkpoint.read_tensors(tmp_path / name / "train.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_another_vqvae_is_refused(store, vqvae_run, painter_run, coloured):
    with pytest.raises(ValueError, match="predicts the codes of another VQ-VAE"):
        learn(vqvae_run, painter_run, images=str(coloured))


def test_coded_pictures_are_the_codes_of_the_pictures_here_and_in_another_process(coloured, tokenizer_run):
    pictures, network = open_images(coloured).learnt, checkpoint.load_vqvae(tokenizer_run)
    coded = CodedPictures(pictures, network)
    before = len(pickle.dumps(coded))
    chosen = np.array([5, 0, 7])
    there = network.encode(torch.from_numpy(pictures.read(chosen)))
    assert np.array_equal(coded.read(chosen), there)
    assert len(pickle.dumps(coded)) == before
    assert np.array_equal(pickle.loads(pickle.dumps(coded)).read(chosen), there)
    draws = CodedPictures(pictures, network, samples=4, seed=1)
    assert draws.read(chosen).shape == (3, 4, 6, 6)
    assert np.array_equal(draws.read(chosen), pickle.loads(pickle.dumps(draws)).read(chosen))


def run_program(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "worldmodel.sample", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_sheet_of_samples_is_written_with_a_bar_and_its_classes_are_named(painter_run, tmp_path):
    done = run_program("--run", str(painter_run), "--grid", "3x5", "--out", str(tmp_path / "sheet.png"))
    assert done.returncode == 0, done.stderr
    assert iio.imread(tmp_path / "sheet.png").shape == (3 * 24, 5 * 24, 3)
    assert "15 pictures" in done.stdout and "from the top: blue, red, blue" in done.stdout
    assert "sample:" in done.stderr and "/15" in done.stderr


def test_the_colours_of_samples_are_those_of_their_class(painter_run):
    made = Painter.load(painter_run)
    pictures = made.paint(made.labels(2, 8)).float().mean((1, 2)).unflatten(0, (2, 8))  # (class, n, RGB)
    blue, red = (pictures[..., 2] - pictures[..., 0]).mean(1)
    assert blue > 20 and red < -20


def test_the_same_seed_gives_the_same_pictures_however_many_are_drawn_at_once(painter_run, monkeypatch):
    whole = Painter.load(painter_run).paint(torch.tensor([0, 1] * 5), seed=3)
    monkeypatch.setitem(painter.PARTS, "cpu", 3)
    again = Painter.load(painter_run).paint(torch.tensor([0, 1] * 5), seed=3)
    assert torch.equal(whole, again)
    assert torch.equal(Painter.load(painter_run).paint(torch.tensor([0, 1]), seed=5), whole[2:4])
    assert not torch.equal(Painter.load(painter_run).paint(torch.tensor([0, 1]), seed=4), whole[:2])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"label": "rde"}, "unknown class 'rde': expected one of blue, red; did you mean 'red'"),
        ({"grid": "8"}, "--grid must be rows x columns such as 8x8, got 8"),
        ({"out": "sheet.gif"}, r"--out must end in \.png, got sheet\.gif"),
        ({"scale": 0}, "--scale must be 1 or more, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more, got -1"),
        ({"run": "nowhere"}, "nowhere holds no config.yaml"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_asking_for_samples_is_named(flags, message, painter_run, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sample(**{"run": str(painter_run), "grid": "1x1", "out": str(tmp_path / "sheet.png"), **flags})


def test_a_class_is_refused_by_a_prior_that_knows_none(store, vqvae_run, tmp_path):
    learn(vqvae_run, tmp_path / "run", store=str(store))
    with pytest.raises(ValueError, match="have no classes, got 'cat'; name none"):
        sample(str(tmp_path / "run"), "cat")
    with pytest.raises(ValueError, match="must be the run of a pixelcnn, it is that of a vqvae"):
        sample(str(vqvae_run))
    sample(str(tmp_path / "run"), grid="1x2", out=str(tmp_path / "sheet.png"), scale=2)
    assert iio.imread(tmp_path / "sheet.png").shape == (48, 96, 3)
