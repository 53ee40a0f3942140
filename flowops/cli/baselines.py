"""Trivial densities that any trained model must beat, fitted on the same training images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowops.data import ImageData
from flowops.nn.preprocess import dequantize
from flowops.ops import gaussian_log_prob, logit

#: Candidates for the logit's margin; the training likelihood chooses, so the baseline is a strong
#: one.
LOGIT_MARGINS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05)

_FIT_IMAGES = 20_000
_CHUNK = 4096


def trivial_baselines(data: ImageData, *, seed: int = 0) -> dict[str, float]:
    """Return held-out bits per dimension of three densities without a network.

    Args:
        data: Images; the densities see ``data.train`` (the Gaussians at most its first 20,000), the
            figures are of ``data.test``.
        seed: Of the dequantisation noise.

    Returns:
        Bits/dim by name: independent pixel histograms with add-one counts; a full-covariance
        Gaussian of the dequantised pixels; the same after :func:`flowops.ops.logit`, its margin
        chosen on the training images.
    """
    generator = torch.Generator().manual_seed(seed)
    train = torch.from_numpy(data.train).flatten(1)
    test = torch.from_numpy(data.test).flatten(1)
    result = {"independent pixel histograms": histogram_bits(train, test, data.levels)}
    fit = dequantize(train[:_FIT_IMAGES].double(), data.levels, generator=generator)
    held_out = dequantize(test.double(), data.levels, generator=generator)
    dims = train.shape[1]

    def bits(log_density: Tensor) -> float:
        return (math.log(data.levels) - log_density.mean().item() / dims) / math.log(2)

    result["full-covariance Gaussian"] = bits(_Gaussian(fit)(held_out))
    fits: list[tuple[float, float]] = []
    for margin in LOGIT_MARGINS:
        t, log_det = logit(fit, alpha=margin)
        fits.append(((_Gaussian(t)(t) + log_det).mean().item(), margin))
    margin = max(fits)[1]
    t, _ = logit(fit, alpha=margin)
    t_test, log_det = logit(held_out, alpha=margin)
    result["full-covariance Gaussian after logit"] = bits(_Gaussian(t)(t_test) + log_det)
    return result


def binary_baselines(data: ImageData) -> dict[str, float]:
    """Return held-out nats an image of binarised pixels, in expectation over the binarisation.

    Returns:
        Nats by name: independent pixels with the training images' means; and the entropy of the
        binarisation given the grey image, below which no honest figure can be.
    """
    train = torch.from_numpy(data.train).flatten(1)
    test = torch.from_numpy(data.test).flatten(1)
    scale = data.levels - 1
    total = torch.stack([chunk.double().sum(0) for chunk in train.split(_CHUNK)]).sum(0)
    # One image of each kind is added, so that no probability is 0.
    mean = (total / scale + 1) / (len(train) + 2)
    p = test.double() / scale
    crossed = p * mean.log() + (1 - p) * (1 - mean).log()
    entropy = torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)
    return {
        "independent pixels": -crossed.sum(1).mean().item(),
        "entropy of the binarisation, the least possible": -entropy.sum(1).mean().item(),
    }


def principal_errors(data: ImageData, components: int) -> dict[str, float]:
    """Return the held-out squared error of a pixel in [0, 1] of linear reconstructions.

    Returns:
        Errors by name: of the mean training image, and of the mean and so many principal components
        of the training images; the latter only where there are fewer than pixels.
    """
    scale = data.levels - 1
    train = torch.from_numpy(data.train).flatten(1)
    mean = torch.stack([part.double().sum(0) for part in train.split(_CHUNK)]).sum(0) / len(train)
    parts = (part.double() - mean for part in train.split(_CHUNK))
    covariance = torch.stack([part.T @ part for part in parts]).sum(0)
    test = (torch.from_numpy(data.test).flatten(1).double() - mean) / scale
    errors = {"the mean image": test.square().mean().item()}
    if components < len(mean):
        axes = torch.linalg.eigh(covariance).eigenvectors[:, -components:]
        rest = test - test @ axes @ axes.T
        errors[f"{components} principal components"] = rest.square().mean().item()
    return errors


def histogram_bits(train: Tensor, test: Tensor, levels: int) -> float:
    """Return bits/dim of ``test`` under per-pixel histograms of ``train`` with add-one counts.

    Both are ``(n, dims)``, values in ``[0, levels)``.
    """
    dims = train.shape[1]
    cell = torch.arange(dims) * levels
    counts = torch.zeros(dims * levels, dtype=torch.int64)
    for chunk in train.split(_CHUNK):
        counts += torch.bincount((chunk.long() + cell).flatten(), minlength=dims * levels)
    bits = torch.log2((counts.double() + 1) / (len(train) + levels))
    total = sum(bits[chunk.long() + cell].sum().item() for chunk in test.split(_CHUNK))
    return -total / test.numel()


class _Gaussian:
    """Maximum-likelihood Gaussian of the rows of ``x``; calling it gives log-densities in nats."""

    def __init__(self, x: Tensor) -> None:
        self.mean = x.mean(0)
        centred = x - self.mean
        covariance = centred.T @ centred / len(x)
        # Fewer images than pixels leave null directions; a millionth of the mean variance bounds
        # them.
        ridge = 1e-6 * covariance.diagonal().mean() if len(x) <= x.shape[1] else 0.0
        covariance.diagonal().add_(ridge)
        self.cholesky = torch.linalg.cholesky(covariance)

    def __call__(self, x: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self.cholesky, (x - self.mean).T, upper=False)
        log_scale = self.cholesky.diagonal().log().sum()
        return gaussian_log_prob(white.T) - log_scale
