"""`flowops sample`, `evaluate` and `info` on a trained run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flowops.cli.plots import write_grid


def test_sample_is_reproducible_and_counts_images(command, trained, tmp_path):
    one, other, third = (tmp_path / f"{name}.png" for name in "abc")
    for path, seed in ((one, 1), (other, 1), (third, 2)):
        words = ("--run", trained, "--n", 6, "--seed", seed, "--temperature", 0.7, "--out", path)
        result = command("sample", *words, "--quiet")
        assert result.json == {"out": str(path), "n": 6, "temperature": 0.7, "step": 4}
    assert one.read_bytes() == other.read_bytes() != third.read_bytes()
    with Image.open(one) as image:
        assert image.size == (3 * 50 + 2, 2 * 50 + 2)


def test_evaluate_repeats_the_final_figure_of_training(command, trained):
    result = command("train", "--resume", "--out", trained, "--quiet").json
    again = command("evaluate", "--run", trained, "--quiet").json
    assert again["test_bits_per_dim"] == result["test_bits_per_dim"]
    assert again["baselines"] == result["baselines"]
    assert again["bound"] == "uniform-dequantisation bound"


def test_importance_samples_tighten_the_bound_and_label_it(command, trained):
    loose = command("evaluate", "--run", trained, "--quiet").json
    tight = command("evaluate", "--run", trained, "--importance-samples", 32, "--quiet").json
    assert tight["test_bits_per_dim"] < loose["test_bits_per_dim"]
    assert tight["bound"] == "importance-weighted bound, 32 samples"
    words = command("evaluate", "--run", trained, "--importance-samples", 2).out
    assert "importance-weighted bound, 2 samples" in words
    assert "independent pixel histograms" in words


def test_info_says_what_is_in_use(command):
    facts = command("info", "--quiet").json
    lines = command("info").out.splitlines()
    assert facts["cpu"] in ("DEFAULT", "AVX2", "AVX512")
    assert any(line.split() == ["cpu", facts["cpu"]] for line in lines)
    assert len(lines) == len(facts)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_grid_enlarges_by_whole_pixels(tmp_path, channels):
    images = np.zeros((5, channels, 4, 4), np.uint8)
    images[0, :, 0, 0] = 7
    write_grid(images, 8, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape == (2 * 50 + 2, 3 * 50 + 2)
    assert (pixels[2:14, 2:14] == 255).all()
    assert (pixels[14:50, 2:50] == 0).all()
