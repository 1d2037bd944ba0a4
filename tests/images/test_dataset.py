"""Images are what their files hold, whatever the layout; what is wrong is named."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import VQVAE_SIZES, sliding_stripes, train_config
from tests.images.test_array_files import everything, noise, write_cifar
from worldmodel import checkpoint, cli
from worldmodel.episodes.store import EpisodeStore, Schema
from worldmodel.images.dataset import ImageBatches, measure_variance, open_images
from worldmodel.images.folders import load_image
from worldmodel.metrics import nmse, ssim, vqvae_scores
from worldmodel.train.vqvae import vqvae
from worldmodel.train_config import TrainConfig
from worldmodel.training import fit


def save(path: Path, picture: np.ndarray | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)


def test_class_folders_are_classes_in_the_order_of_their_names(tmp_path):
    pictures = {}
    for number in range(11):
        name = f"{'cat' if number % 2 else 'ant'}/{number:02d}.png"
        pictures[name] = noise(8, 8, 3)
        save(tmp_path / name, pictures[name])
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "notes.txt").touch()
    images, names = open_images(tmp_path), sorted(pictures)
    assert images.classes == ("ant", "cat")
    assert images.held_out.labels.tolist() == [1] and np.array_equal(everything(images.held_out)[0], pictures[names[9]])
    train = [name for number, name in enumerate(names) if number != 9]
    assert images.train.labels.tolist() == [int(name.startswith("cat")) for name in train]
    assert np.array_equal(everything(images.train), np.stack([pictures[name] for name in train]))


def test_a_flat_folder_has_no_classes(tmp_path):
    for number in range(4):
        save(tmp_path / f"{number}.PNG", noise(8, 8, 3))
    images = open_images(tmp_path)
    assert (len(images.train), len(images.held_out), images.classes) == (3, 1, ())


@pytest.mark.parametrize("name", ["val", "test"])
def test_imagenets_layout_holds_its_own_part_out(tmp_path, name):
    for place in ("train/n01/a.JPEG", "train/n02/b.JPEG", "train/n02/more/c.JPEG", f"{name}/n02/d.JPEG"):
        save(tmp_path / place, noise(40, 60, 3))
    images = open_images(tmp_path, size=16)
    assert (len(images.train), len(images.held_out), images.shape) == (3, 1, (16, 16, 3))
    assert images.classes == ("n01", "n02") and images.held_out.labels.tolist() == [1]
    assert images.train.labels.tolist() == [0, 1, 1]


def test_a_train_folder_alone_is_the_set(tmp_path):
    for number in range(12):
        save(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", noise(8, 8, 3))
    images = open_images(tmp_path)
    assert (len(images.train), len(images.held_out), images.classes) == (11, 1, ("a", "b"))


def test_what_is_no_set_of_images_is_explained(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nothing at .*nowhere; nothing is downloaded: put there CIFAR-10's own"
    ):
        open_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no images \(\.jpg, .*; put there CIFAR-10"):
        open_images(tmp_path)
    (tmp_path / "set.tar.gz").touch()
    with pytest.raises(ValueError, match=r"set\.tar\.gz must be a .* or a folder; unpack archives first"):
        open_images(tmp_path / "set.tar.gz")
    with pytest.raises(ValueError, match="--size must be 0 or more, got -1"):
        open_images(tmp_path, -1)
    save(tmp_path / "train" / "a" / "1.png", noise(8, 8, 3))
    save(tmp_path / "val" / "2.png", noise(8, 8, 3))
    with pytest.raises(
        ValueError, match=r"val must have class folders, as .*train has; sort its images into class folders"
    ):
        open_images(tmp_path)
    save(tmp_path / "train" / "1.png", noise(8, 8, 3))
    with pytest.raises(ValueError, match=r"holds both images and folders of images \(a\); move one of them away"):
        open_images(tmp_path)
    (tmp_path / "train" / "1.png").unlink()
    (tmp_path / "val" / "2.png").unlink()
    save(tmp_path / "val" / "b" / "2.png", noise(8, 8, 3))
    with pytest.raises(ValueError, match=r"val has classes that .*train does not have: b"):
        open_images(tmp_path)


def test_images_of_several_sizes_need_a_size(tmp_path):
    for number in range(12):
        save(tmp_path / f"{number:02d}.png", noise(8, 8 + number // 11, 3))
    with pytest.raises(ValueError, match=r"11\.png: it has 9×8 pixels and 00\.png 8×8 pixels; give a --size"):
        open_images(tmp_path)
    assert open_images(tmp_path, 8).shape == (8, 8, 3)


def test_the_middle_is_cut_out_and_scaled_without_aliases(tmp_path):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :16] = picture[:, 80:] = (255, 0, 0)  # cut away
    picture[:, 16:80] = np.indices((64, 64)).sum(0)[..., None] % 2 * 255  # a chessboard: all gray when it is smaller
    save(tmp_path / "wide.png", picture)
    save(tmp_path / "tall.png", picture.transpose(1, 0, 2))
    for name in ("wide", "tall"):
        small = load_image(tmp_path / f"{name}.png", 16)
        assert small.shape == (16, 16, 3) and abs(small.astype(int) - 127).max() <= 12
    large = noise(64, 64, 3)
    save(tmp_path / "large.png", large)
    assert np.array_equal(load_image(tmp_path / "large.png", 64), large), "nothing is done to a picture of that size"


def test_arrays_and_frames_are_scaled_as_files_are(tmp_path, store):
    frames = EpisodeStore(store).read(9).observations
    np.savez(tmp_path / "set.npz", images=frames)
    for number, frame in enumerate(frames):
        save(tmp_path / "files" / f"{number:02d}.png", frame)
    of_files, of_arrays = (open_images(tmp_path / name, 16).held_out for name in ("files", "set.npz"))
    assert np.array_equal(everything(of_files), everything(of_arrays))
    of_store = open_images(store, 16).held_out
    assert np.array_equal(of_store.read(np.array([9, 19])), everything(of_files)) and len(of_store) == len(frames)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_a_picture_of_other_colors_becomes_rgb(tmp_path, mode):
    original = Image.fromarray(noise(8, 8, 3)).convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    original.save(path)
    assert np.array_equal(load_image(path), np.asarray(original.convert("RGB")))


@pytest.mark.filterwarnings("error")
def test_transparency_is_left_out(tmp_path):
    colors = noise(8, 8, 3)
    save(tmp_path / "rgba.png", np.concatenate([colors, noise(8, 8, 1)], 2))
    assert np.array_equal(load_image(tmp_path / "rgba.png"), colors)
    palette = Image.fromarray(colors).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(8)))
    assert np.array_equal(load_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", noise(64, 64, 3))
    path = tmp_path / "1.png"
    whole = path.read_bytes()
    images = open_images(tmp_path, 8)
    for data in (whole[: len(whole) // 2], whole[:100] + bytes(100) + whole[200:], b"no picture", b""):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"cannot use the image .*1\.png: "):
            everything(images.train)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"1\.png: its mode is I;16, expected one of RGB, "):
        everything(images.train)


def test_the_frames_of_a_store_are_its_images(store):
    images, episodes = open_images(store), EpisodeStore(store)
    assert np.array_equal(everything(images.held_out), episodes.read(9).observations)
    rest = [episodes.read(number).observations for number in range(12) if number != 9]
    assert np.array_equal(everything(images.train), np.concatenate(rest))
    assert images.classes == () and not images.train.labels.any()
    assert images.facts["environment"] == "stripes"


def test_a_folder_of_stores_has_a_class_for_each(tmp_path):
    for place, name in enumerate(("maze", "arena")):
        made = EpisodeStore.create(tmp_path / name, Schema((24, 24, 3), "uint8", ("l", "s", "r"), name))
        for seed in range(2):
            made.append(sliding_stripes(10 * place + seed, steps=3 + place))
    images = open_images(tmp_path)
    assert images.classes == ("arena", "maze") and images.facts["stores"]["maze"]["environment"] == "maze"
    assert images.train.labels.tolist() == images.held_out.labels.tolist() == [0] * 5 + [1] * 4
    assert np.array_equal(
        images.held_out.read(np.array([5, 1])),
        [sliding_stripes(i, n).observations[j] for i, n, j in ((1, 3, 0), (11, 4, 1))],
    )
    EpisodeStore.create(tmp_path / "small", Schema((8, 8, 3), "uint8", ("l",), "small"))
    with pytest.raises(ValueError, match=r"small holds frames \(8, 8, 3\) and arena \(24, 24, 3\); they must agree"):
        open_images(tmp_path)
    EpisodeStore.create(tmp_path / "codes", Schema((6, 6), "uint16", ("l",), "small"))
    with pytest.raises(ValueError, match=r"codes must hold frames \(H, W, 3\) uint8, it holds uint16 \(6, 6\)"):
        open_images(tmp_path)


def test_a_batch_is_a_function_of_seed_and_number_and_shared_among_workers(tmp_path):
    np.savez(tmp_path / "set.npz", images=noise(50, 4, 4, 3), labels=np.arange(50))
    images = open_images(tmp_path / "set.npz")
    batches = ImageBatches(images.train, 8, seed=0)
    first = batches(3)
    assert first.shape == (8, 4, 4, 3) and first.dtype == torch.uint8
    assert torch.equal(first, ImageBatches(images.train, 8, seed=0)(3))
    for other in (batches(4), ImageBatches(images.train, 8, seed=1)(3)):
        assert not torch.equal(first, other)
    assert torch.equal(first, torch.cat([batches(3, rank, 4) for rank in range(4)]))
    assert np.array_equal(first, images.train.read(batches.sample_indices(3)))
    with pytest.raises(ValueError, match="--batch_size must be 1 or more, got 0"):
        ImageBatches(images.train, 0, seed=0)(0)


def test_images_are_sent_to_workers_by_name_not_by_value(tmp_path):
    write_cifar(tmp_path, count=50)
    np.savez(tmp_path / "set.npz", images=noise(100, 32, 32, 3))
    for source in (tmp_path, tmp_path / "set.npz"):
        batches = ImageBatches(open_images(source).train, 8, seed=0)
        sent = pickle.dumps(batches)
        assert len(sent) < 3000
        assert torch.equal(pickle.loads(sent)(5), batches(5))


def test_a_vqvae_learns_from_images_and_says_from_which(tmp_path):
    write_cifar(tmp_path / "cifar")
    arguments = ["vqvae", "--images", str(tmp_path / "cifar"), "--size", "16", "--run", str(tmp_path / "run")]
    arguments += [
        "--model.hidden_channels=16",
        "--model.quantizer.codebook_size=16",
        "--train.steps=4",
        "--train.threads=1",
        "--batch_size=4",
    ]
    cli.run({"vqvae": vqvae}, arguments)
    run = tmp_path / "run"
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert data["images"] == str(tmp_path / "cifar") and data["store"] == "" and data["size"] == 16
    assert data["shape"] == [16, 16, 3] and data["num_train"] == 14 and data["num_held_out"] == 3
    assert data["classes"][3] == "kind 3"
    scores = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"psnr", "ssim", "nmse", "perplexity"} <= scores.keys()
    assert Image.open(run / "pictures" / "0000004.png").size == (3 * 16, 2 * 16)
    pictures = torch.from_numpy(everything(open_images(tmp_path / "cifar", 16).held_out))
    assert vqvae_scores(checkpoint.load_vqvae(run), pictures)[1]["nmse"] == pytest.approx(scores["nmse"], abs=1e-6)


def test_a_run_does_not_go_on_with_more_images_of_which_others_are_held_out(tmp_path):
    settings = {"model": VQVAE_SIZES, "batch_size": 4, "images": str(tmp_path / "set.npz")}
    np.savez(tmp_path / "set.npz", images=noise(20, 8, 8, 3))
    vqvae(str(tmp_path / "run"), train=train_config(1), **settings)
    np.savez(tmp_path / "set.npz", images=noise(21, 8, 8, 3))
    with pytest.raises(ValueError, match="was begun with num_train 18, got 19"):
        vqvae(str(tmp_path / "run"), train=train_config(2), **settings)


def test_a_class_that_is_held_out_as_a_whole_is_said(tmp_path, capsys):
    np.savez(tmp_path / "set.npz", images=noise(30, 4, 4, 3), labels=np.arange(30) % 10)
    open_images(tmp_path / "set.npz")
    assert "has no image of class 9 to train on, as every tenth is held out" in capsys.readouterr().err


def test_a_run_on_frames_says_of_which_world_they_are(vqvae_run):
    data = checkpoint.read_config(vqvae_run)["data"]
    assert data["environment"] == "stripes" and data["images"] == "" and data["shape"] == [24, 24, 3]


def test_either_a_store_or_images_are_given(store, tmp_path, capsys):
    for more in ([], ["--store", str(store), "--images", str(store)]):
        with pytest.raises(SystemExit, match="1"):
            cli.run({"vqvae": vqvae}, ["vqvae", "--run", str(tmp_path / "run"), *more])
        assert "error: give either --store or --images, got " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_images_that_do_not_fit_the_network_are_refused_before_a_run_begins(tmp_path):
    np.savez(tmp_path / "set.npz", images=noise(4, 10, 10, 3))
    with pytest.raises(ValueError, match="sides that are multiples of 4, got"):
        vqvae(
            str(tmp_path / "run"),
            images=str(tmp_path / "set.npz"),
            model=VQVAE_SIZES,
            train=train_config(1),
            batch_size=2,
        )
    assert not (tmp_path / "run").exists()


def test_the_error_over_the_variance_is_one_for_the_mean_and_nought_for_the_truth():
    truth = torch.from_numpy(noise(70, 4, 4, 3))
    assert nmse(truth, truth) == 0
    mean = torch.full_like(truth, round(float(truth.double().mean())))
    assert nmse(mean, truth) == pytest.approx(1, abs=1e-3)
    off = truth // 2
    expected = (truth.double() - off.double()).square().mean() / truth.double().var(correction=0)
    assert nmse(off, truth) == pytest.approx(float(expected))


def test_a_rate_can_be_constant_and_the_weights_kept_plain(tmp_path):
    config = TrainConfig(
        steps=5, learning_rate=0.1, warmup_steps=0, decay_fraction=0.0, ema_decay=0.0, threads=1, device="cpu"
    )
    assert [config.learning_rate_at(step) for step in range(5)] == [0.1] * 5

    class Line(torch.nn.Linear):
        def forward(self, x, generator):
            return super().forward(x).square().mean(), {}

    model = Line(2, 2)
    averaged = fit(model, lambda *_: torch.ones(3, 2), lambda model, step: {}, config, tmp_path)
    for mine, theirs in zip(averaged.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_images_smaller_than_the_window_of_ssim_have_one_too():
    truth = torch.from_numpy(noise(2, 8, 6, 3))
    assert ssim(truth, truth).tolist() == pytest.approx([1, 1])
    assert ssim(truth, 255 - truth).max() < 0


def test_the_variance_is_that_of_evenly_spaced_images_and_stays_the_same_for_a_resumed_comparison(store):
    images = open_images(store).train
    chosen = images.read(np.linspace(0, len(images) - 1, min(512, len(images))).round().astype(int))
    assert measure_variance(images) == float((chosen / 255).var())
