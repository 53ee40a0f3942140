"""The trivial densities against closed forms and the published figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flowops.cli.baselines import histogram_bits, trivial_baselines
from flowops.data import FASHION_MNIST_FOLDER, ImageData, load_images


def image_data(train: np.ndarray, test: np.ndarray, levels: int) -> ImageData:
    return ImageData("toy", train.astype(np.uint8), test.astype(np.uint8), levels, "as given")


def test_histogram_adds_one_to_each_count():
    train = torch.tensor([[0, 1], [0, 2], [1, 1]], dtype=torch.uint8)
    test = torch.tensor([[0, 1], [2, 0]], dtype=torch.uint8)
    probabilities = [3 / 6, 3 / 6, 1 / 6, 1 / 6]
    expected = -sum(math.log2(p) for p in probabilities) / 4
    assert histogram_bits(train, test, 3) == pytest.approx(expected, abs=1e-12)


def test_histogram_of_uniform_pixels_costs_the_levels():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 16, (20_000, 4))
    bits = histogram_bits(torch.from_numpy(data[:16_000]), torch.from_numpy(data[16_000:]), 16)
    assert bits == pytest.approx(4.0, abs=0.01)


def test_gaussian_finds_the_entropy_of_correlated_pixels():
    # Pixel pairs v, v + noise: the Gaussian knows the second given the first, histograms do not.
    rng = np.random.default_rng(0)
    latent = rng.normal(128, 20, (20_000, 1, 1, 1))
    pixels = (latent + rng.normal(0, 4, (20_000, 1, 1, 2))).round().clip(0, 255)
    baselines = trivial_baselines(image_data(pixels[:16_000], pixels[16_000:], 256))
    covariance = np.full((2, 2), 400.0) + np.diag([16.0 + 1 / 6] * 2)
    entropy = 0.5 * math.log2((2 * math.pi * math.e) ** 2 * np.linalg.det(covariance)) / 2
    assert baselines["full-covariance Gaussian"] == pytest.approx(entropy, abs=0.02)
    independent = 0.5 * math.log2(2 * math.pi * math.e * (416 + 1 / 6))
    assert baselines["independent pixel histograms"] == pytest.approx(independent, abs=0.05)


def test_fewer_images_than_pixels_stay_finite():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4, (12, 1, 5, 5))
    assert all(
        map(math.isfinite, trivial_baselines(image_data(pixels[:8], pixels[8:], 4)).values())
    )


def test_figures_of_the_digits():
    baselines = trivial_baselines(load_images("digits"))
    assert baselines == pytest.approx(
        {
            "independent pixel histograms": 2.4221,
            "full-covariance Gaussian": 2.9731,
            "full-covariance Gaussian after logit": 2.2764,
        },
        abs=2e-3,
    )


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="dataset-fashion-mnist is absent")
def test_figures_of_fashion_mnist():
    baselines = trivial_baselines(load_images("fashion-mnist"))
    assert baselines["independent pixel histograms"] == pytest.approx(4.588, abs=1e-3)
    assert baselines["full-covariance Gaussian"] == pytest.approx(6.479, abs=5e-3)
    # A fixed margin of 1e-5 gives 4.231; the margin of the best training likelihood does better.
    assert 4.15 < baselines["full-covariance Gaussian after logit"] < 4.231
