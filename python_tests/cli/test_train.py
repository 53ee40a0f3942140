"""`flowops train`: what it leaves, and how it stops."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flowops.cli.settings import TrainSettings
from flowops.cli.trainer import Trainer

from .conftest import SMALL_GLOW


@pytest.mark.parametrize(
    "model",
    [
        ("glow", "--levels", "1", "--flow-steps", "2", "--hidden", "4"),
        ("glow", "--levels", "1", "--flow-steps", "2", "--hidden", "4", "--memory", "reversible"),
        ("realnvp", "--levels", "2", "--couplings", "1", "--hidden", "4", "--blocks", "1"),
        ("nice", "--hidden", "8", "--depth", "1"),
        ("nsf", "--hidden", "8", "--transforms", "2"),
        ("nsf", "--hidden", "8", "--transforms", "1", "--kind", "autoregressive"),
    ],
    ids=lambda words: words[0],
)
def test_train_leaves_a_complete_run(command, images, tmp_path, model):
    out = tmp_path / "run"
    words = ("--steps", 5, "--log-every", 2, "--eval-every", 4, "--batch-size", 8, "--threads", 1)
    result = command("train", *model, "--data", images, *words, "--out", out)
    assert result.status == 0
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "samples.png",
        "curve.png",
    }
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert "test_bits_per_dim" in rows[1]
    assert rows[-1]["final"]
    assert np.isfinite(rows[-1]["test_bits_per_dim"])
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == model[0]
    assert config["event_shape"] == [1, 4, 4]
    assert {"data", "steps", "hidden", "threads"} <= set(config["non_default"])
    assert config["environment"]["torch"] == str(torch.__version__)
    with Image.open(out / "samples.png") as image:
        assert min(image.size) >= 8 * 48
    assert f"{model[0]}, after 5 steps" in result.out
    assert "full-covariance Gaussian after logit" in result.out


def test_quiet_prints_one_line_of_json(command, images, tmp_path):
    words = ("--data", images, "--steps", 2, "--quiet", "--out", tmp_path / "run")
    result = command("train", *SMALL_GLOW, *words)
    assert result.err == ""
    assert result.out.count("\n") == 1
    assert result.json["step"] == 2
    assert len(result.json["baselines"]) == 3


@pytest.mark.parametrize(
    "options",
    [
        ("--dtype", "float64"),
        ("--dtype", "bfloat16"),
        ("--ema", "0.9"),
        ("--weight-decay", "0.1", "--clip", "0", "--schedule", "constant"),
        ("--preprocess", "logit", "--alpha", "0.01"),
        ("--no-learn-top", "--conv1x1", "full", "--coupling", "additive"),
    ],
    ids=" ".join,
)
def test_options_train_evaluate_and_sample(command, images, tmp_path, options):
    out = tmp_path / "run"
    words = ("--data", images, "--steps", 2, "--quiet", "--out", out)
    trained = command("train", *SMALL_GLOW, *options, *words).json
    evaluated = command("evaluate", "--run", out, "--quiet").json
    assert evaluated["test_bits_per_dim"] == trained["test_bits_per_dim"]
    assert command("sample", "--run", out, "--out", tmp_path / "grid.png").status == 0


def test_training_lowers_the_held_out_bits(command, images, tmp_path):
    words = ("--data", images, "--steps", 200, "--log-every", 1, "--eval-every", 1, "--lr", 0.01)
    out = tmp_path / "run"
    result = command("train", *SMALL_GLOW, *words, "--preprocess", "logit", "--quiet", "--out", out)
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert result.json["test_bits_per_dim"] < first["test_bits_per_dim"] - 0.5


def test_not_finite_loss_names_step_and_layer(command, images, tmp_path, monkeypatch):
    optimise = Trainer._optimise

    def poisoned(trainer):
        if trainer.step == 3:
            coupling = trainer.model.transform.levels[0].layers[-2]
            coupling.conditioner.second.weight.data.fill_(float("nan"))
        return optimise(trainer)

    monkeypatch.setattr(Trainer, "_optimise", poisoned)
    out = tmp_path / "run"
    words = ("--data", images, "--steps", 9, "--checkpoint-every", 2, "--quiet", "--out", out)
    result = command("train", *SMALL_GLOW, *words)
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "loss is nan at step 4: " in result.err
    assert "conditioner.second (ActNormConv2d) gave nan; its parameter weight" in result.err
    assert "the last checkpoint is intact" in result.err
    tensors = load_file(out / "checkpoint.safetensors")
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())


def test_diverging_run_stops(command, images, tmp_path):
    words = ("--data", images, "--lr", 1e30, "--warmup-steps", 0, "--steps", 9, "--clip", 0)
    result = command("train", *SMALL_GLOW, *words, "--quiet", "--out", tmp_path / "run")
    assert result.status == 1
    assert "step 2" in result.err
    assert result.err.count("\n") == 1


def test_full_disk_keeps_the_last_checkpoint(command, images, tmp_path, monkeypatch):
    out = tmp_path / "run"
    save = Trainer.save
    kept: list[bytes] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_full_disk(trainer):
        if trainer.step == 4:
            kept.append((out / "checkpoint.safetensors").read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        save(trainer)

    monkeypatch.setattr(Trainer, "save", save_on_full_disk)
    words = ("--data", images, "--steps", 9, "--checkpoint-every", 2, "--log-every", 2, "--quiet")
    try:
        result = command("train", *SMALL_GLOW, *words, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.status == 1
    assert "checkpoint.safetensors: File too large; the previous one is intact" in result.err
    assert (out / "checkpoint.safetensors").read_bytes() == kept[0]
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
    ]
    monkeypatch.undo()
    assert command("train", "--resume", "--out", out, "--quiet").json["step"] == 9


def test_learning_rate_warms_up_and_decays():
    settings = TrainSettings(lr=1.0, steps=100, warmup_steps=10)
    assert settings.learning_rate(0) == 0.1
    assert settings.learning_rate(9) == 1.0
    assert 0.01 < settings.learning_rate(99) < 0.02
    constant = TrainSettings(lr=1.0, steps=100, warmup_steps=0, schedule="constant")
    assert {constant.learning_rate(step) for step in range(100)} == {1.0}


def test_default_run_folder_is_named_by_model_and_data(command, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--data", images, "--steps", 1, "--batch-size", 8, "--hidden", 8, "--depth", 1)
    assert command("train", "nice", *words, "--quiet").status == 0
    assert (tmp_path / "runs" / "nice-ramps.npz" / "config.json").is_file()


@pytest.mark.slow
def test_default_command_beats_the_gaussian(command, tmp_path):
    result = command("train", "--quiet", "--out", tmp_path / "run").json
    gaussian = result["baselines"]["full-covariance Gaussian after logit"]
    assert result["test_bits_per_dim"] < gaussian - 0.05
    assert Path(tmp_path / "run" / "samples.png").is_file()
