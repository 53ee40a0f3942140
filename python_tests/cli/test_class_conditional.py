"""`--class-conditional`: labels reach training, evaluation and sampling."""

from __future__ import annotations

import numpy as np
import pytest

from flowops.cli.evaluation import held_out_bits
from flowops.cli.sampling import choose_device, load_run

from .conftest import SMALL_GLOW
from .test_resume import assert_same_run, interrupt_at


@pytest.fixture
def words(labelled):
    return (*SMALL_GLOW, "--data", labelled, "--class-conditional", "--lr", 1e-2, "--log-every", 10)


def test_the_class_is_learned_judged_and_drawn(command, labelled, words, tmp_path):
    out = tmp_path / "run"
    result = command("train", "glow", *words, "--steps", 60, "--quiet", "--out", out)
    assert result.status == 0, result.err
    again = command("evaluate", "--run", out, "--quiet").json
    assert again["test_bits_per_dim"] == result.json["test_bits_per_dim"]
    resumed = command("train", "--resume", "--quiet", "--out", out).json
    assert resumed["test_bits_per_dim"] == result.json["test_bits_per_dim"]
    assert "class-conditional glow, after 60 steps" in command("evaluate", "--run", out).out
    model, config, _ = load_run(out, choose_device("cpu"))
    assert config.model_options["classes"] == 2
    with np.load(labelled) as file:
        images, classes = file["test"], file["test_labels"]
    true = held_out_bits(model, images, 32, labels=classes)
    assert true == pytest.approx(result.json["test_bits_per_dim"])
    assert held_out_bits(model, images, 32, labels=1 - classes) > true + 0.1
    drawn = {}
    for label in (0, 1):
        png = tmp_path / f"{label}.png"
        options = ("--run", out, "--n", 4, "--label", label, "--out", png, "--quiet")
        assert command("sample", *options).status == 0
        drawn[label] = png.read_bytes()
    assert drawn[0] != drawn[1]


def test_interrupted_run_resumes_bit_for_bit(command, words, tmp_path, monkeypatch):
    words = ("train", "glow", *words, "--steps", 9, "--checkpoint-every", 4, "--quiet", "--out")
    assert command(*words, tmp_path / "whole").status == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_optimise", 6)
        assert command(*words, tmp_path / "cut").status == 130
    assert command("train", "--resume", "--out", tmp_path / "cut", "--quiet").status == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_errors(command, images, words, trained, tmp_path):
    options = ("--quiet", "--out", tmp_path / "run")
    result = command("train", "nice", "--class-conditional", *options)
    assert (result.status, "--class-conditional needs glow, got nice" in result.err) == (2, True)
    result = command("train", "glow", *words, "--data", images, *options)
    assert (result.status, "ramps.npz must hold labels" in result.err) == (2, True)
    result = command("sample", "--run", trained, "--label", 0, "--out", tmp_path / "a.png")
    assert (result.status, "--label must be below the run's 0 classes, got 0" in result.err) == (
        2,
        True,
    )
    assert not (tmp_path / "run").exists()
