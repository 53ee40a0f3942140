"""A tiny data set and a way to call the command in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowops.cli import main

for _package in ("safetensors", "tqdm", "PIL", "matplotlib", "sklearn"):
    pytest.importorskip(_package)

#: A Glow so small that a step takes a few milliseconds.
SMALL_GLOW = [
    "--levels",
    "1",
    "--flow-steps",
    "2",
    "--hidden",
    "4",
    "--threads",
    "1",
    "--batch-size",
    "8",
]


@dataclass
class Result:
    """What a call of the command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An .npz file of 48 + 12 images, 1x4x4, 8 levels, with structure to learn."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(4), np.arange(4))
    values = (ramp + rng.integers(0, 2, (60, 1, 4, 4))).astype(np.uint8)
    path = tmp_path / "ramps.npz"
    np.savez(path, train=values[:48], test=values[48:], levels=8)
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call ``flowops`` with the given words."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return call


@pytest.fixture
def trained(images: Path, tmp_path: Path, command: Callable[..., Result]) -> Path:
    """The folder of a finished run of 4 steps."""
    out = tmp_path / "trained"
    words = ("--data", images, "--steps", 4, "--checkpoint-every", 2, "--log-every", 2, "--quiet")
    assert command("train", "glow", *SMALL_GLOW, *words, "--out", out).status == 0
    return out


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """An .npz file: dark images of class 0, bright ones of class 1; the class is worth bits."""
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 2
    noise = rng.integers(0, 8, (60, 1, 4, 4))
    values = (24 * classes[:, None, None, None] + noise).astype(np.uint8)
    parts = {"train": values[:48], "test": values[48:], "levels": 32}
    path = tmp_path / "labelled.npz"
    np.savez(path, **parts, train_labels=classes[:48], test_labels=classes[48:])
    return path
