"""Image sources: formats, splits, and what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from flowops.data import FASHION_MNIST_FOLDER, load_images, quantize
from flowops.nn.preprocess import dequantize

PIL = pytest.importorskip("PIL.Image")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 6, 4), dtype=np.uint8)


def idx(images: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, images.ndim) + struct.pack(f">{images.ndim}i", *images.shape)
    return header + images.tobytes()


def test_digits_are_split_the_same_way_each_time():
    pytest.importorskip("sklearn")
    data = load_images("digits")
    assert data.event_shape == (1, 8, 8)
    assert (len(data.train), len(data.test), data.levels) == (1500, 297, 17)
    assert data.train.max() == 16
    assert data.fingerprint() == load_images("digits").fingerprint()
    assert data.fingerprint() != load_images("digits", levels=18).fingerprint()


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="dataset-fashion-mnist is absent")
def test_fashion_mnist_has_its_published_statistics():
    data = load_images("fashion-mnist")
    assert data.train.shape == (60_000, 1, 28, 28)
    assert data.test.shape == (10_000, 1, 28, 28)
    assert data.train.mean() / 255 == pytest.approx(0.28604, abs=1e-5)


def test_npy_holds_out_a_tenth(tmp_path, pixels):
    np.save(tmp_path / "a.npy", pixels)
    data = load_images(str(tmp_path / "a.npy"))
    assert (len(data.train), len(data.test), data.event_shape) == (18, 2, (1, 6, 4))
    together = np.concatenate([data.train, data.test])[:, 0]
    assert sorted(map(bytes, together)) == sorted(map(bytes, pixels))


@pytest.mark.parametrize(
    ("shape", "event"),
    [((20, 3, 6, 4), (3, 6, 4)), ((20, 6, 4, 3), (3, 6, 4)), ((20, 6, 4), (1, 6, 4))],
)
def test_array_layouts(tmp_path, shape, event):
    np.save(tmp_path / "a.npy", np.ones(shape, np.uint8))
    assert load_images(str(tmp_path / "a.npy")).event_shape == event


def test_labels_stay_with_their_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    data = load_images("digits", labels=True)
    plain = load_images("digits")
    assert data.classes == 10
    assert plain.classes == 0
    assert data.fingerprint() != plain.fingerprint()
    images, targets = datasets.load_digits(return_X_y=True)
    known = {
        image.astype(np.uint8).tobytes(): target
        for image, target in zip(images, targets, strict=True)
    }
    for part, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert [known[image.tobytes()] for image in part] == labels.tolist()


def test_idx_labels(tmp_path, pixels):
    classes = np.arange(20, dtype=np.uint8) % 3
    for stem, part in (("train", slice(0, 15)), ("t10k", slice(15, 20))):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx(pixels[part]))
        packed = gzip.compress(idx(classes[part]))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(packed)
    data = load_images(str(tmp_path), labels=True)
    assert data.classes == 3
    assert data.train_labels.tolist() == classes[:15].tolist()
    assert data.test_labels.tolist() == classes[15:].tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "must hold labels, the two IDX files of them or `train_labels`"),
        (
            {"train_labels": np.zeros(14, int), "test_labels": np.zeros(5, int)},
            r"train labels of a.npz must be 15 whole numbers, got int64 of shape \(14,\)",
        ),
        (
            {"train_labels": np.zeros(15), "test_labels": np.zeros(5, int)},
            "train labels of a.npz must be 15 whole numbers, got float64",
        ),
        (
            {"train_labels": np.arange(15) % 2, "test_labels": np.full(5, 2)},
            r"labels of a.npz must be in \[0, 2\), got \[0, 2\]",
        ),
        (
            {"train_labels": np.arange(15) - 1, "test_labels": np.zeros(5, int)},
            r"labels of a.npz must be in \[0, 14\), got \[-1, 13\]",
        ),
    ],
)
def test_bad_labels_are_one_clear_error(tmp_path, pixels, labels, message):
    np.savez(tmp_path / "a.npz", train=pixels[:15], test=pixels[15:], **labels)
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path / "a.npz"), labels=True)


def test_npz_with_parts_and_levels(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", train=pixels[:15] // 64, test=pixels[15:] // 64, levels=4)
    data = load_images(str(tmp_path / "a.npz"))
    assert (len(data.train), len(data.test), data.levels) == (15, 5, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx(tmp_path, pixels, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(idx(pixels)))
    assert load_images(str(path)).event_shape == (1, 6, 4)


def test_idx_folder_keeps_its_own_split(tmp_path, pixels):
    for stem, part in (("train", pixels[:16]), ("t10k", pixels[16:])):
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(part)))
    data = load_images(str(tmp_path))
    np.testing.assert_array_equal(data.train[:, 0], pixels[:16])
    np.testing.assert_array_equal(data.test[:, 0], pixels[16:])


@pytest.mark.parametrize("labels", [1, 2])
def test_cifar_records(tmp_path, labels):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    records = np.concatenate([np.full((4, labels), 9, np.uint8), images.reshape(4, -1)], axis=1)
    names = ("data_batch_1.bin", "test_batch.bin") if labels == 1 else ("train.bin", "test.bin")
    for name in names:
        (tmp_path / name).write_bytes(records.tobytes())
    for source in (tmp_path, tmp_path / names[0]):
        data = load_images(str(source))
        assert data.event_shape == (3, 32, 32)
        assert bytes(data.test[0]) in set(map(bytes, images))


def save_images(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        PIL.fromarray(image).save(folder / f"{index:03}.png")


def test_image_folder_grey_and_colour(tmp_path, pixels):
    save_images(tmp_path / "grey", pixels)
    assert load_images(str(tmp_path / "grey")).event_shape == (1, 6, 4)
    save_images(tmp_path / "mixed" / "a", pixels[:9])
    save_images(tmp_path / "mixed" / "b", np.repeat(pixels[9:, ..., None], 3, axis=3))
    data = load_images(str(tmp_path / "mixed"))
    assert data.event_shape == (3, 6, 4)
    assert (data.train[:, 0] == data.train[:, 2]).all()


def test_image_folder_with_train_and_test(tmp_path, pixels):
    save_images(tmp_path / "train", pixels[:15])
    save_images(tmp_path / "test", pixels[15:])
    data = load_images(str(tmp_path))
    np.testing.assert_array_equal(data.test[:, 0], pixels[15:])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.zeros((5, 4)), "must hold images of shape"),
        ("a.npy", np.full((5, 4, 4), 0.5), "must be whole numbers"),
        ("a.npy", np.full((5, 4, 4), np.nan), r"must be in \[0, 256\), got \[nan, nan\]"),
        ("a.npy", np.full((5, 4, 4), -1), r"must be in \[0, 256\), got \[-1, -1\]"),
        ("a.npy", np.zeros((5, 4, 4), bool), "must hold numbers, got dtype bool"),
        ("a.npy", np.zeros((1, 4, 4)), "must hold at least 2 images, got 1"),
        ("a.npy", b"not an array", "not a readable .npy file"),
        ("a.npz", b"not a zip", "not a readable .npz file"),
        ("a.bin", b"12345", "must hold CIFAR records"),
        ("a.gz", gzip.compress(b"12345")[:-4], "damaged gzip file"),
        ("images", idx(np.zeros((5, 4, 4), np.uint8))[:-1], "must be a whole IDX file"),
        ("labels", idx(np.zeros(5, np.uint8)), "must be a whole IDX file of images"),
        ("a.txt", b"hello", "its format is unknown"),
    ],
)
def test_refuses_what_is_no_image_data(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=message):
        load_images(str(path))


def test_refuses_folders_without_images_of_one_size(tmp_path, pixels):
    with pytest.raises(ValueError, match="holds no images"):
        load_images(str(tmp_path))
    save_images(tmp_path / "a", pixels[:3])
    save_images(tmp_path / "b", pixels[:3, :2])
    with pytest.raises(ValueError, match=r"must be 6x4 like .*, got 2x4"):
        load_images(str(tmp_path))


def test_missing_source_names_the_choices():
    with pytest.raises(FileNotFoundError, match="digits, fashion-mnist or an existing path"):
        load_images("no-such-file")


def test_quantize_undoes_dequantize():
    values = torch.arange(256).repeat(50)
    assert torch.equal(quantize(dequantize(values, 256), 256).long(), values)
    extremes = torch.tensor([-1.0, 1.0, 7.0, torch.nan])
    assert quantize(extremes, 17).tolist() == [0, 16, 16, 0]
