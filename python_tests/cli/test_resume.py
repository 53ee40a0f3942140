"""A killed run goes on to the same bits as one that was never interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowops.cli.trainer import Trainer

from .conftest import SMALL_GLOW

ROOT = Path(__file__).parents[2]


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics rows, weights, optimiser, generators and pictures are equal bit for bit."""
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    left = load_file(one / "checkpoint.safetensors")
    right = load_file(other / "checkpoint.safetensors")
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    pictures = {path.name for path in one.glob("*.png")}
    assert pictures == {path.name for path in other.glob("*.png")}
    for name in pictures:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def start(*words: object) -> subprocess.Popen[bytes]:
    """Start ``python -m flowops train`` in a process of its own."""
    command = [sys.executable, "-m", "flowops", "train", *map(str, words), "--quiet"]
    # On a busy machine threads that spin while they wait take minutes for seconds of work.
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)


def rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(process: subprocess.Popen[bytes], folder: Path, more: int, delay: float) -> bool:
    """SIGKILL ``process`` a moment after it wrote ``more`` rows; False if it ended before."""
    target = rows(folder) + more
    while process.poll() is None and rows(folder) < target:
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is not None:
        assert process.returncode == 0
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def run_with_kills(folder: Path, words: tuple[object, ...], kills: int, rng: random.Random) -> int:
    """Run to the end through ``kills`` kills at random places; returns how many struck."""
    struck = 0
    for _ in range(kills):
        struck += kill_after(
            start(*words, "--resume", "--out", folder), folder, rng.randint(1, 8), rng.random() / 50
        )
    last = start(*words, "--resume", "--out", folder)
    assert last.wait() == 0
    return struck


def test_killed_run_resumes_bit_for_bit(command, images, tmp_path):
    words = ("glow", *SMALL_GLOW, "--data", images, "--steps", 120, "--log-every", 1)
    words = (*words, "--checkpoint-every", 7, "--eval-every", 50, "--ema", 0.9)
    assert command("train", *words, "--out", tmp_path / "whole", "--quiet").status == 0
    struck = run_with_kills(tmp_path / "killed", words, 2, random.Random(0))
    assert struck == 2
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ("glow", "--flow-steps", 2, "--hidden", 32),
        ("realnvp", "--couplings", 1, "--blocks", 1, "--hidden", 8),
        ("nice", "--hidden", 64),
        ("nsf", "--hidden", 32, "--transforms", 3),
    ],
    ids=lambda words: words[0],
)
def test_run_killed_often_resumes_bit_for_bit(tmp_path, model):
    words = (*model, "--steps", 80, "--log-every", 1, "--checkpoint-every", 5, "--threads", 2)
    assert start(*words, "--out", tmp_path / "whole").wait() == 0
    struck = run_with_kills(tmp_path / "killed", words, 5, random.Random(model[0]))
    assert struck >= 3
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, method: str, step: int) -> None:
    """Have Ctrl-C arrive when ``Trainer.method`` is called after ``step`` steps."""
    original = getattr(Trainer, method)

    def interrupted(trainer: Trainer, *args: object, **kwargs: object) -> object:
        if trainer.step == step:
            raise KeyboardInterrupt
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, method, interrupted)


@pytest.mark.parametrize(
    ("method", "step"),
    [("_optimise", 0), ("_optimise", 1), ("_optimise", 7), ("save", 8), ("judge", 9)],
    ids=["before the first step", "before a checkpoint", "between", "while saving", "at the end"],
)
def test_interrupted_run_resumes_bit_for_bit(command, images, tmp_path, monkeypatch, method, step):
    words = ("train", *SMALL_GLOW, "--data", images, "--steps", 9, "--log-every", 3)
    words = (*words, "--checkpoint-every", 4, "--quiet", "--out")
    assert command(*words, tmp_path / "whole").status == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, method, step)
        result = command(*words, tmp_path / "cut")
    assert result.status == 130
    assert result.err.count("\n") == 1
    assert command("train", "--resume", "--out", tmp_path / "cut", "--quiet").status == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_half_written_row_and_file_are_dropped(command, trained):
    (trained / ".flowops-tmp-checkpoint.safetensors").write_bytes(b"half")
    text = (trained / "metrics.jsonl").read_text()
    (trained / "metrics.jsonl").write_text(text + '{"step": 5, "epo')
    assert command("train", "--resume", "--out", trained, "--quiet").status == 0
    assert (trained / "metrics.jsonl").read_text() == text


def test_resume_takes_model_and_settings_from_the_run(command, images, tmp_path):
    out = tmp_path / "run"
    words = ("--data", images, "--steps", 2, "--batch-size", 8, "--hidden", 8, "--depth", 1)
    first = command("train", "nice", *words, "--quiet", "--out", out).json
    again = command("train", "--resume", "--quiet", "--out", out).json
    first.pop("seconds"), again.pop("seconds")
    assert again == first


def test_resume_begins_where_nothing_was_begun(command, images, tmp_path):
    out = tmp_path / "run"
    words = ("--data", images, "--steps", 1, "--quiet", "--out", out)
    assert command("train", *SMALL_GLOW, "--resume", *words).json["step"] == 1
    config = json.loads((out / "config.json").read_text())
    assert config["train"]["steps"] == 1


@pytest.mark.slow
def test_compiled_run_leaves_a_plain_model(command, images, tmp_path):
    words = ("train", "glow", "--data", images, *SMALL_GLOW, "--quiet", "--steps", 4)
    names = {}
    for kind in ("plain", "compile"):
        extra = ("--compile",) if kind == "compile" else ()
        assert command(*words, *extra, "--out", tmp_path / kind).status == 0
        names[kind] = load_file(tmp_path / kind / "checkpoint.safetensors").keys()
    assert names["compile"] == names["plain"]
    words = ("sample", "--run", tmp_path / "compile", "--n", 2, "--out", tmp_path / "grid.png")
    assert command(*words).status == 0
