"""CIFAR-10, SVHN and .npz files are read as what they hold; nothing in them is run, and what is wrong is named."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from worldmodel.images.array_files import CIFAR10_CLASSES
from worldmodel.images.dataset import open_images

random = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return random.integers(0, 256, shape, np.uint8)


def rows(pictures: np.ndarray) -> np.ndarray:
    """Pictures (N, 32, 32, 3) as CIFAR-10 keeps them, (N, 3072)."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2).reshape(-1, 3072))


def everything(pictures) -> np.ndarray:
    return pictures.read(np.arange(len(pictures)))


def python_2(values: dict) -> bytes:
    """A pickle as Python 2 wrote CIFAR-10's: its strings are bytes, its arrays numpy's of that time."""

    def packed(value) -> bytes:
        if isinstance(value, str | bytes):
            raw = value.encode() if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(raw)) + raw
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(packed, value)) + b"e"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"".join(map(packed, value.shape)) + b"\x86"
        head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        return head + shape + kind + b"\x89" + packed(value.tobytes()) + b"tb"

    return b"\x80\x02}(" + b"".join(packed(key) + packed(value) for key, value in values.items()) + b"u."


def write_cifar(folder: Path, dump=pickle.dumps, count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Write two training batches and a test batch; return the images and the labels of the first two."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, labels = noise(2 * count, 32, 32, 3), random.integers(0, 10, 2 * count)
    for name, part in (
        ("data_batch_1", slice(0, count)),
        ("data_batch_2", slice(count, None)),
        ("test_batch", slice(3)),
    ):
        values = {"batch_label": name, "labels": labels[part].tolist(), "data": rows(pictures[part])}
        (folder / name).write_bytes(dump(values))
    names = [f"kind {number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(dump({"label_names": names, "num_vis": 3072}))
    return pictures, labels


DUMPS = {f"protocol {number}": lambda values, number=number: pickle.dumps(values, number) for number in (2, 4, 5)}


@pytest.mark.parametrize("dump", [python_2, *DUMPS.values()], ids=["python 2", *DUMPS])
def test_cifar_10_in_its_own_layout_is_read_whatever_wrote_the_pickles(tmp_path, dump):
    pictures, labels = write_cifar(tmp_path, dump)
    images = open_images(tmp_path)
    assert np.array_equal(everything(images.train), pictures)
    assert np.array_equal(images.train.labels, labels)
    assert np.array_equal(everything(images.held_out), pictures[:3])
    assert images.classes == tuple(f"kind {number}" for number in range(10))
    assert images.shape == (32, 32, 3) and images.train.labels.dtype == np.int64


def test_the_folder_that_cifar_10_was_unpacked_in_will_do(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    assert len(open_images(tmp_path).train) == 14


def test_cifar_10_as_npz_is_the_same_set(tmp_path):
    pictures, labels = noise(14, 32, 32, 3), random.integers(0, 10, 14)
    for name, part in (("data_batch_1", slice(7)), ("data_batch_2", slice(7, None)), ("test_batch", slice(3))):
        np.savez(tmp_path / f"{name}.npz", images=pictures[part], labels=labels[part].astype(np.uint8))
    images = open_images(tmp_path)
    assert np.array_equal(everything(images.train), pictures) and np.array_equal(images.train.labels, labels)
    assert np.array_equal(everything(images.held_out), pictures[:3])
    assert images.classes == CIFAR10_CLASSES


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def calling(text: str) -> bytes:
    return b"\x80\x02" + text.encode("latin1")


@pytest.mark.parametrize(
    ("data", "forbidden"),
    [
        (calling("cbuiltins\neval\nX\x05\x00\x00\x001 + 1\x85R."), "builtins.eval"),
        (calling("c__builtin__\ngetattr\n."), "__builtin__.getattr"),
        (calling("(S'true'\nios\nsystem\n."), "os.system"),
        (calling("cnumpy.testing._private.utils\nrunstring\n."), "numpy.testing._private.utils.runstring"),
        (calling("cnumpy\nndarray.tofile\n."), "numpy.ndarray.tofile"),
        (calling("c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R."), "bytes written as hex"),
        (calling("ccopyreg\n_reconstructor\n."), "copyreg._reconstructor"),
        (calling("}r\xff\xff\xff\x7f."), "it asks for a list of 2147483647 values"),
        (calling("}X\x04\x00\x00\x00aaaa" + "2\x86" * 40 + "Ns."), "it has the same tuple in two places"),
        (calling("}]q\x01" + "h\x01h\x01\x86q\x01" * 40 + "Ns."), "it has the same list in two places"),
    ],
)
def test_a_pickle_that_asks_for_anything_but_an_array_is_refused(tmp_path, data, forbidden):
    write_cifar(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(data)
    with pytest.raises(ValueError, match=f"data_batch_2 cannot be read as a file of CIFAR-10: .*{forbidden}"):
        open_images(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_does_nothing(tmp_path, name, protocol):
    write_cifar(tmp_path)
    values = pickle.loads((tmp_path / name).read_bytes())
    values["extra"] = Malicious(tmp_path / "harm")
    (tmp_path / name).write_bytes(pickle.dumps(values, protocol))
    with pytest.raises(ValueError, match=rf"{name} .* it asks for (posix|nt)\.mkdir, which no file of CIFAR-10 needs"):
        open_images(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.zeros((7, 3071), np.uint8)}, r"must hold data \(N, 3072\) uint8, a 32×32 image per row"),
        ({"data": np.zeros((7, 3072), np.float32)}, "its type is f4, expected u1"),
        ({"data": np.array([None])}, "its type is O8, expected u1"),
        ({"data": [1, 2]}, "must hold an array called data and a list called labels"),
        ({"labels": [1] * 6}, "must hold a class of 0 or more for each of its 7 images"),
        ({"labels": [0, 1, 2, 3, 4, 5, 10]}, r"must hold labels from 0 to 9, got 10"),
        ({"labels": [0, 1, 2, 3, 4, 5, -1]}, r"must hold labels from 0 to 9, got -1"),
        ({"labels": ["cat"] * 7}, r"must hold labels from 0 to 9, got 'cat'"),
    ],
)
def test_a_pickle_of_something_else_is_named(tmp_path, change, message):
    write_cifar(tmp_path)
    values = pickle.loads((tmp_path / "data_batch_1").read_bytes())
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({**values, **change}, 4))
    with pytest.raises(ValueError, match=f"data_batch_1 {message}|data_batch_1 must hold data .*{message}"):
        open_images(tmp_path)


def test_a_pickle_that_lacks_a_part_or_was_cut_off_is_named(tmp_path):
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_2"
    whole = path.read_bytes()
    for data in (whole[:-5000], b"", b"\x80\x04]."):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"data_batch_2 (cannot be read as a file of CIFAR-10|must hold a dict)"):
            open_images(tmp_path)
    path.write_bytes(whole)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat"]}))
    with pytest.raises(ValueError, match=r"batches\.meta must hold label_names, a list of 10 names, got \['cat'\]"):
        open_images(tmp_path)


def test_one_npz_holds_out_every_tenth_image(tmp_path):
    pictures, labels = noise(25, 8, 12, 3), np.arange(25) % 3
    np.savez(tmp_path / "set.npz", images=pictures, labels=labels)
    images = open_images(tmp_path / "set.npz")
    assert np.array_equal(everything(images.held_out), pictures[[9, 19]])
    assert images.held_out.labels.tolist() == [0, 1] and images.classes == ("0", "1", "2")
    assert np.array_equal(everything(images.train), np.delete(pictures, [9, 19], 0))
    assert images.shape == (8, 12, 3)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 1), (4, 8, 8, 3), (4, 8, 8, 4)])
def test_gray_images_in_arrays_become_rgb_and_labels_may_lack(tmp_path, shape):
    pictures = noise(*shape)
    np.savez(tmp_path / "set.npz", images=pictures)
    images = open_images(tmp_path / "set.npz")
    expected = pictures if shape[3:] in ((3,), (4,)) else pictures.reshape(4, 8, 8, 1).repeat(3, 3)
    assert np.array_equal(everything(images.held_out), expected[3:, ..., :3])
    assert images.classes == () and images.train.labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": noise(4, 8, 8, 3)}, "it holds pictures, expected images and optionally labels"),
        ({"images": np.zeros((4, 8, 8, 3))}, r"must hold images \(N, H, W, 3\) uint8, got float64"),
        ({"images": noise(4, 3, 8, 8)}, r"must hold images \(N, H, W, 3\) uint8, got uint8 \(4, 3, 8, 8\)"),
        ({"images": noise(0, 8, 8, 3)}, "holds no images"),
        ({"images": noise(1, 8, 8, 3)}, "must hold two images or more, one to hold out, it holds 1"),
        ({"images": noise(4, 8, 8, 3), "labels": np.arange(3)}, "a class of 0 or more for each of its 4 images"),
        ({"images": noise(4, 8, 8, 3), "labels": np.arange(4) - 1}, "classes from 0 to 65535, got -1 to 2"),
        ({"images": noise(4, 8, 8, 3), "labels": np.arange(4) << 20}, "classes from 0 to 65535, got 0 to 3145728"),
        ({"images": noise(4, 8, 8, 3), "labels": np.array(list("abcd"))}, "a class of 0 or more for each .*got <U1"),
        ({"images": noise(4, 8, 8, 3), "labels": np.ones(4)}, "a class of 0 or more for each .*got float64"),
        ({"images": np.array([Malicious(Path("harm"))])}, r"set\.npz cannot be read: Object arrays"),
    ],
)
def test_an_npz_of_something_else_is_named(tmp_path, arrays, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        open_images(tmp_path / "set.npz")
    assert "set.npz" in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_a_damaged_npz_is_named(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=noise(4, 8, 8, 3))
    whole = path.read_bytes()
    np.save(tmp_path / "bare.npy", noise(4, 8, 8, 3))
    for data in (whole[:-30], whole[:200] + bytes(20) + whole[220:], b"", (tmp_path / "bare.npy").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"set\.npz cannot be read: "):
            open_images(path)


def test_a_test_part_must_go_with_the_rest(tmp_path):
    np.savez(tmp_path / "data_batch_1.npz", images=noise(4, 8, 8, 3), labels=np.arange(4))
    for labels, message in (([9, 10], "has labels up to 10 of 10 classes"), (None, "of 0 classes")):
        more = {} if labels is None else {"labels": labels}
        np.savez(tmp_path / "test_batch.npz", images=noise(2, 8, 8, 3), **more)
        with pytest.raises(
            ValueError, match=rf"test_batch\.npz {message}|test_batch\.npz has labels up to 0 {message}"
        ):
            open_images(tmp_path)
    np.savez(tmp_path / "test_batch.npz", images=noise(2, 8, 10, 3), labels=[0, 1])
    with pytest.raises(ValueError, match=r"has held-out images of \(8, 10, 3\) and others of \(8, 8, 3\)"):
        open_images(tmp_path)
    assert open_images(tmp_path, size=4).shape == (4, 4, 3)
    np.savez(tmp_path / "data_batch_2.npz", images=noise(2, 9, 9, 3), labels=[0, 1])
    with pytest.raises(ValueError, match=r"data_batch_2\.npz holds 9×9 images with labels and data_batch_1\.npz 8×8"):
        open_images(tmp_path, size=4)


def test_svhn_is_read_with_its_tens_as_zeros(tmp_path):
    pictures, digits = noise(6, 32, 32, 3), np.array([1, 10, 9, 10, 2, 3])
    for name, part in (("train", slice(4)), ("test", slice(4, None))):
        values = {"X": np.moveaxis(pictures[part], 0, -1), "y": digits[part, None].astype(np.uint8)}
        savemat(tmp_path / f"{name}_32x32.mat", values)
    images = open_images(tmp_path)
    assert np.array_equal(everything(images.train), pictures[:4])
    assert images.train.labels.tolist() == [1, 0, 9, 0] and images.held_out.labels.tolist() == [2, 3]
    assert images.classes == tuple("0123456789")
    alone = open_images(tmp_path / "train_32x32.mat")
    assert (len(alone.train), len(alone.held_out)) == (3, 1)


def test_a_mat_of_something_else_is_named(tmp_path):
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": noise(8, 8, 3, 4)})
    with pytest.raises(
        ValueError,
        match=r"train_32x32\.mat cannot be read as an SVHN file .*: it lacks \{'y'\}; it must hold X .* and y",
    ):
        open_images(tmp_path)
    savemat(path, {"X": noise(8, 8, 3, 4), "y": np.ones((3, 1))})
    with pytest.raises(ValueError, match=r"train_32x32\.mat must hold a class .* for each of its 4 images"):
        open_images(tmp_path)
    path.write_bytes(b"MATLAB 7.3 MAT-file" + bytes(500))
    with pytest.raises(ValueError, match=r"train_32x32\.mat cannot be read as an SVHN file of MATLAB version 5"):
        open_images(tmp_path)
