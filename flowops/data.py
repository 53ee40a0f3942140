"""Images for density models: where they lie and how they are split.

Nothing is downloaded. Sources: ``digits`` (the 1797 real 8x8 digits that ship with scikit-learn),
``fashion-mnist`` (Debian's package dataset-fashion-mnist, or a folder with its four files), and
paths to ``.npy``/``.npz`` arrays, IDX files, CIFAR binary files or folders of images.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NAMED_SOURCES = ("digits", "fashion-mnist")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
DIGITS_TRAIN_IMAGES = 1500

_SPLIT_SEED = 0
_CIFAR_PIXELS = 3 * 32 * 32

ByteArray = NDArray[np.uint8]
LabelArray = NDArray[np.int64]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class ImageData:
    """Quantised images, split into a part to fit and a part to judge by.

    Attributes:
        name: What to call it in reports.
        train: ``(n, channels, height, width)``, uint8 values in ``[0, levels)``.
        test: ``(m, channels, height, width)``, never used for fitting.
        levels: Number of values a pixel can take.
        split: One sentence that says which images are held out.
        train_labels: ``(n,)``, the class of each image, counted from 0; None where not asked for.
        test_labels: ``(m,)``, likewise.
    """

    name: str
    train: ByteArray
    test: ByteArray
    levels: int
    split: str
    train_labels: LabelArray | None = None
    test_labels: LabelArray | None = None

    @property
    def classes(self) -> int:
        """One more than the largest label of ``train``; 0 without labels."""
        return 0 if self.train_labels is None else int(self.train_labels.max()) + 1

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """Return the SHA-256 over all that is here; a run can tell whether its data changed."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(repr((part.shape, self.levels)).encode())
            digest.update(np.ascontiguousarray(part).data)
        for labels in (self.train_labels, self.test_labels):
            if labels is not None:
                digest.update(np.ascontiguousarray(labels).data)
        return digest.hexdigest()


def load_images(source: str, *, levels: int | None = None, labels: bool = False) -> ImageData:
    """Load and split the images that ``source`` names.

    Args:
        source: ``digits``, ``fashion-mnist``, or a path: an ``.npy`` array; an ``.npz`` file with
            one array or with ``train`` and ``test``; an IDX file, gzipped or not; a CIFAR-10 or
            CIFAR-100 binary batch; or a folder that holds the four IDX files of an MNIST-like set,
            CIFAR batches, or images (apart in ``train`` and ``test``, or all together).
        levels: Number of values a pixel can take; by default 17 for ``digits``, the scalar
            ``levels`` of an ``.npz`` file that has one, and 256 for all else.
        labels: Load the classes too: of ``digits``, ``fashion-mnist``, a folder of IDX files that
            holds the two of labels, or an ``.npz`` file with ``train_labels`` and ``test_labels``.

    Returns:
        The images. Where the source has no test part, a tenth is held out by a fixed permutation.

    Raises:
        FileNotFoundError: The source is absent; the message says how to get it.
        ValueError: The source is no image data, a pixel is not in ``[0, levels)``, or labels are
            asked for that are missing or do not fit.
    """
    if source == "digits":
        return _load_digits(levels or 17, labels=labels)
    if source == "fashion-mnist":
        if not FASHION_MNIST_FOLDER.is_dir():
            raise FileNotFoundError(
                f"data: fashion-mnist is not in {FASHION_MNIST_FOLDER}; "
                "run `apt-get install dataset-fashion-mnist`, "
                "or give --data a folder with its four files"
            )
        data = _load_path(FASHION_MNIST_FOLDER, levels, name="fashion-mnist")
        return _labelled(data, *_read_labels(FASHION_MNIST_FOLDER)) if labels else data
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"data: must be one of {', '.join(NAMED_SOURCES)} or an existing path, got {source}"
        )
    data = _load_path(path, levels, name=path.name)
    return _labelled(data, *_read_labels(path)) if labels else data


def quantize(y: Tensor, levels: int) -> Tensor:
    """Return the pixel values, uint8, whose bins hold ``y``, the nearest outside ``[0, 1)``.

    Inverse of :func:`flowops.nn.preprocess.dequantize`, for samples of a model. NaN becomes 0.
    """
    return y.nan_to_num(0.0).mul(levels).floor().clamp(0, levels - 1).to(torch.uint8)


def _load_digits(levels: int, *, labels: bool) -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FileNotFoundError(
            "data: the digits come with scikit-learn, which is not installed; "
            "run `pip install scikit-learn`"
        ) from error
    flat, classes = load_digits(return_X_y=True)
    images = flat.reshape(-1, 1, 8, 8)
    pixels = _pixels(images, levels, "digits")
    held_out = len(pixels) - DIGITS_TRAIN_IMAGES
    train, test = _split(pixels, held_out)
    split = f"{len(test)} of {len(images)} images held out by a fixed permutation"
    data = ImageData("digits", train, test, levels, split)
    return _labelled(data, *_split(classes, held_out)) if labels else data


def _load_path(path: Path, levels: int | None, *, name: str) -> ImageData:
    if path.is_dir():
        given, given_test = _read_folder(path)
    elif path.suffix == ".npz":
        given, given_test, stored = _read_npz(path)
        levels = levels or stored
    else:
        given, given_test = _read_file(path), None
    levels = levels or 256
    train = _pixels(_as_nchw(given, path), levels, str(path))
    split = "the source's own test part"
    if given_test is None:
        count = len(train)
        if count < 2:
            raise ValueError(f"data: {path} must hold at least 2 images, got {count}")
        train, test = _split(train, max(1, count // 10))
        split = f"{len(test)} of {count} images held out by a fixed permutation"
    else:
        test = _pixels(_as_nchw(given_test, path), levels, str(path))
    if len(train) == 0 or len(test) == 0:
        raise ValueError(
            f"data: {path} must hold images to fit and to test, got {len(train)} and {len(test)}"
        )
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"data: {path} must have train and test images of one shape, "
            f"got {train.shape[1:]} and {test.shape[1:]}"
        )
    return ImageData(name, train, test, levels, split)


def _split(images: NDArray[_Scalar], held_out: int) -> tuple[NDArray[_Scalar], NDArray[_Scalar]]:
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    return images[np.sort(order[held_out:])], images[np.sort(order[:held_out])]


def _pixels(images: NDArray[np.generic], levels: int, source: str) -> ByteArray:
    if not 2 <= levels <= 256:
        raise ValueError(f"data: levels must be in [2, 256], got {levels}")
    if images.size:
        low, high = images.min(), images.max()
        if not (low >= 0 and high < levels):  # also refuses NaN
            raise ValueError(
                f"data: pixels of {source} must be in [0, {levels}), got [{low}, {high}]"
            )
    pixels = images.astype(np.uint8)
    if images.dtype != np.uint8 and not np.array_equal(pixels, images):
        raise ValueError(f"data: pixels of {source} must be whole numbers, got fractions")
    return np.ascontiguousarray(pixels)


def _as_nchw(images: NDArray[np.generic], path: Path) -> NDArray[np.generic]:
    if images.dtype.kind not in "uif":
        raise ValueError(f"data: {path} must hold numbers, got dtype {images.dtype}")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        channels_last = images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 3, 4)
        return np.moveaxis(images, 3, 1) if channels_last else images
    raise ValueError(
        f"data: {path} must hold images of shape (n, height, width) or "
        f"(n, channels, height, width), got {images.shape}"
    )


def _read_npz(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic] | None, int | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"data: {path} is not a readable .npz file ({error})") from error
    levels = int(arrays.pop("levels")) if "levels" in arrays else None
    if "train" in arrays:
        return arrays["train"], arrays.get("test"), levels
    if len(arrays) == 1:
        return next(iter(arrays.values())), None, levels
    raise ValueError(
        f"data: {path} must hold one array, or `train` and `test`, got {sorted(arrays)}"
    )


def _read_file(path: Path) -> NDArray[np.generic]:
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"data: {path} is not a readable .npy file ({error})") from error
    raw = _read_bytes(path)
    if raw[:2] == b"\0\0" and len(raw) > 4 and raw[2] == 0x08:
        return _parse_idx(raw, path)
    if path.suffix == ".bin":
        return _parse_cifar(raw, path)
    raise ValueError(
        f"data: {path} must be .npy, .npz, IDX, a CIFAR .bin batch or a folder; "
        "its format is unknown"
    )


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError) as error:
        raise ValueError(f"data: {path} is a damaged gzip file ({error})") from error


def _parse_idx(raw: bytes, path: Path) -> ByteArray:
    """Parse IDX: two zero bytes, type 0x08 (uint8), axes, big-endian sizes, the data."""
    axes = raw[3]
    header = 4 + 4 * axes
    shape = tuple(np.frombuffer(raw[4:header], dtype=">i4").tolist())
    if axes != 3 or len(raw) != header + int(np.prod(shape, dtype=np.int64)):
        raise ValueError(
            f"data: {path} must be a whole IDX file of images (3 axes), got shape {shape}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def _parse_cifar(raw: bytes, path: Path) -> ByteArray:
    """Parse CIFAR records: one label byte (CIFAR-10) or two (CIFAR-100), then 3x32x32 pixels."""
    for labels in (1, 2):
        record = labels + _CIFAR_PIXELS
        if raw and len(raw) % record == 0:
            records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, record)
            return records[:, labels:].reshape(-1, 3, 32, 32)
    raise ValueError(
        f"data: {path} must hold CIFAR records of 3073 or 3074 bytes, got {len(raw)} bytes"
    )


def _read_folder(folder: Path) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    idx = [
        _find_idx(folder, stem) for stem in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    ]
    if idx[0] and idx[1]:
        return _read_file(idx[0]), _read_file(idx[1])
    batches = sorted(folder.glob("data_batch_*.bin")) or sorted(folder.glob("train.bin"))
    tests = sorted(folder.glob("test_batch.bin")) or sorted(folder.glob("test.bin"))
    if batches and tests:
        return np.concatenate([_read_file(batch) for batch in batches]), _read_file(tests[0])
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return _read_images(folder / "train"), _read_images(folder / "test")
    return _read_images(folder), None


def _find_idx(folder: Path, stem: str) -> Path | None:
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_labels(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            if "train_labels" in file.files and "test_labels" in file.files:
                return file["train_labels"], file["test_labels"]
    stems = ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")
    train, test = (_find_idx(path, stem) for stem in stems)
    if train and test:
        return _parse_idx_labels(train), _parse_idx_labels(test)
    raise ValueError(
        f"data: {path} must hold labels, the two IDX files of them or `train_labels` and "
        "`test_labels` in an .npz file; it has none"
    )


def _parse_idx_labels(path: Path) -> ByteArray:
    raw = _read_bytes(path)
    if raw[:4] != b"\0\0\x08\x01" or len(raw) != 8 + int.from_bytes(raw[4:8], "big"):
        raise ValueError(
            f"data: {path} must be a whole IDX file of labels (1 axis), got {len(raw)} bytes"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=8)


def _labelled(data: ImageData, train: NDArray[np.generic], test: NDArray[np.generic]) -> ImageData:
    for part, images, labels in (("train", data.train, train), ("test", data.test, test)):
        if labels.dtype.kind not in "ui" or labels.shape != (len(images),):
            raise ValueError(
                f"data: {part} labels of {data.name} must be {len(images)} whole numbers, "
                f"got {labels.dtype} of shape {labels.shape}"
            )
    classes = int(train.max()) + 1
    low, high = min(train.min(), test.min()), max(train.max(), test.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"data: labels of {data.name} must be in [0, {classes}), got [{low}, {high}]"
        )
    return replace(data, train_labels=train.astype(np.int64), test_labels=test.astype(np.int64))


def _read_images(folder: Path) -> ByteArray:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"data: {folder} holds no images, IDX files or CIFAR batches")
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            "data: a folder of images needs pillow; run `pip install pillow`"
        ) from error
    pixels: list[ByteArray] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                grey = image.mode in ("1", "L")
                pixels.append(np.asarray(image.convert("L" if grey else "RGB")))
        except OSError as error:
            raise ValueError(f"data: {path} is not a readable image ({error})") from error
        if pixels[-1].shape[:2] != pixels[0].shape[:2]:
            expected, got = pixels[0].shape[:2], pixels[-1].shape[:2]
            raise ValueError(
                f"data: {path} must be {expected[0]}x{expected[1]} like {paths[0]}, "
                f"got {got[0]}x{got[1]}"
            )
    if any(image.ndim == 3 for image in pixels):
        pixels = [
            image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in pixels
        ]
        return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))
    return np.stack(pixels)
