"""Wrong requests: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .conftest import SMALL_GLOW


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "a verb is needed"),
        ("trian", "invalid choice: 'trian'"),
        ("train flow", "model must be one of nice, realnvp, glow, nsf, vae, "),
        ("train --stepz 3", "unknown argument --stepz; did you mean --steps"),
        ("train nice --flow-steps 3", "unknown argument --flow-steps"),
        ("train --steps three", "--steps: invalid int value: 'three'"),
        ("train --steps 0", "--steps must be at least 1, got 0"),
        ("train --lr -1", "--lr must be positive and finite, got -1.0"),
        ("train --lr nan", "--lr must be positive and finite, got nan"),
        ("train --ema 1", "--ema must be in [0, 1), got 1.0"),
        ("train --hidden 0", "hidden must be at least 1, got 0"),
        ("train --levels 4", "height and width must be divisible by 16"),
        ("train --coupling cubic", "invalid choice: 'cubic'"),
        ("train --data nowhere", "data: must be one of digits, fashion-mnist or an existing path"),
        ("train --batch-size 5000", "--batch-size must be at most the 1500 training images"),
        ("train --pixel-levels 4", "pixels of digits must be in [0, 4), got [0.0, 16.0]"),
        ("sample --run nowhere", "--run nowhere is no folder"),
        ("sample", "the following arguments are required: --run"),
        ("sample --run . --n 0", "must be at least 1, got 0"),
        ("sample --run . --temperature 0", "must be positive and finite, got 0"),
        ("sample --run . --out grid.jpg", "--out must be a .png file"),
        ("evaluate --run .", "holds no config.json"),
        ("evaluate --run . --importance-samples x", "must be a whole number, got x"),
        ("info --verbose", "unknown argument --verbose"),
    ],
)
def test_wrong_request_is_one_line(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = command(*words.split())
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


def test_missing_fashion_mnist_says_how_to_get_it(command, tmp_path, monkeypatch):
    monkeypatch.setattr("flowops.data.FASHION_MNIST_FOLDER", tmp_path / "absent")
    result = command("train", "--data", "fashion-mnist", "--out", tmp_path / "run")
    assert result.status == 2
    assert "apt-get install dataset-fashion-mnist" in result.err
    assert not (tmp_path / "run").exists()


def run_without(packages: set[str], *words: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that cannot import some packages."""
    program = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {packages} else find_spec(name)
from flowops.cli import main
sys.exit(main())
"""
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


EXTRAS = {"safetensors": "safetensors", "tqdm": "tqdm", "PIL": "pillow", "matplotlib": "matplotlib"}


@pytest.mark.parametrize("package", EXTRAS)
def test_missing_extra_says_what_to_install(tmp_path, package):
    result = run_without({package}, "train", "--out", tmp_path / "run")
    assert (result.returncode, result.stdout) == (2, "")
    message = f"{EXTRAS[package]} not installed; run `pip install 'flowops[train]'`"
    assert result.stderr == f"flowops: {message}\n"
    assert not (tmp_path / "run").exists()


def test_info_needs_no_extra():
    result = run_without({*EXTRAS, "sklearn"}, "info")
    assert (result.returncode, result.stderr) == (0, "")
    assert "torch" in result.stdout


def test_cuda_without_a_gpu_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = command("train", "--device", "cuda", "--out", tmp_path / "run")
    assert (result.status, (tmp_path / "run").exists()) == (2, False)
    assert "--device cuda needs a GPU" in result.err


def test_existing_run_is_refused_and_kept(command, trained):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    result = command("train", "--out", trained)
    assert result.status == 2
    assert "holds a run already; --resume goes on with it" in result.err
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


def test_foreign_folder_is_refused(command, tmp_path):
    (tmp_path / "thesis.tex").write_text("\\documentclass{book}")
    result = command("train", "--out", tmp_path)
    assert result.status == 2
    assert "must be new or empty, but holds thesis.tex" in result.err
    assert len(list(tmp_path.iterdir())) == 1


def test_resume_with_other_settings_names_them(command, trained, images):
    before = (trained / "config.json").read_bytes()
    words = ("--out", trained, "--data", images, "--lr", 0.5, "--hidden", 8, "--batch-size", 8)
    result = command("train", "glow", "--resume", *words)
    assert result.status == 2
    assert result.err.endswith("--lr is 0.001, not 0.5; --hidden is 4, not 8\n")
    result = command("train", "nice", "--resume", "--out", trained)
    assert result.status == 2
    assert "model is glow, not nice" in result.err
    assert (trained / "config.json").read_bytes() == before


def test_changed_data_is_refused(command, trained, images):
    np.savez(images, train=np.zeros((48, 4, 4), np.uint8), test=np.zeros((12, 4, 4), np.uint8))
    for words in (("train", "--resume", "--out", trained), ("evaluate", "--run", trained)):
        result = command(*words)
        assert result.status == 2
        assert "changed since the run began" in result.err


def test_damaged_checkpoint_is_one_line(command, trained):
    path = trained / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    result = command("sample", "--run", trained, "--out", trained / "grid.png")
    assert result.status == 1
    assert "is not a readable checkpoint" in result.err
    assert result.err.count("\n") == 1


def test_module_returns_the_exit_code(tmp_path: Path):
    process = subprocess.run(
        [sys.executable, "-m", "flowops", "train", "--stepz", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""


def test_two_processes_do_not_share_a_folder(command, trained):
    from flowops.cli.run_folder import RunFolder

    with RunFolder(trained).locked():
        result = command("train", "--resume", "--out", trained, *SMALL_GLOW)
    assert result.status == 2
    assert "is in use by another process" in result.err
