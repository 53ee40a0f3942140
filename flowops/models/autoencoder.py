"""Auto-encoders: linear, plain, denoising, sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, mse_loss

from flowops.models.base import ImageModel, Loss
from flowops.models.config import check_at_least, check_choice, option
from flowops.models.moments import RunningMoments
from flowops.models.networks import NETWORKS, make_decoder, make_encoder

OUTPUTS = ("sigmoid", "linear", "bernoulli")
OUTPUT_HELP = "pixels: sigmoid or linear with squared error; bernoulli, sigmoid with cross-entropy"
_CORRUPTIONS = ("mask", "gaussian")
_SPARSITIES = ("kl", "l1", "top")


class AutoEncoder(ImageModel):
    r"""Base of the auto-encoders: codes h = E(x), reconstructions D(h).

    .. math:: \frac1B \sum_x \|x - D(E(x))\|^2

    is the loss, squares summed over the pixels; the part ``mse`` is their mean over pixels. With
    ``output="bernoulli"`` the loss is the cross-entropy of grey pixels instead, nats an image.

    An auto-encoder has no distribution of codes. ``sample`` decodes draws from a Gaussian with the
    running mean and covariance of the codes that training saw (see :class:`RunningMoments`).

    Subclasses set ``encoder`` and ``decoder`` and may change what the encoder sees, what becomes of
    its output, and what is added to the loss.

    Args:
        event_shape: of an image.
        features: of a code.
        output: one of :data:`OUTPUTS`.

    Source of the Gaussian: Ghosh et al., "From variational to deterministic autoencoders", 2020,
    arXiv:1903.12436, section 4.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, event_shape: tuple[int, ...], features: int, output: str) -> None:
        super().__init__(event_shape)
        self.output = output
        self.moments = RunningMoments(features)

    def loss(self, x: Tensor, labels: Tensor | None = None, *, step: int = 0) -> Loss:
        """Return the error of reconstruction and the penalty, a mean over the images."""
        self.check_images(x)
        raw_code = self.encoder(self.corrupt(x) if self.training else self.mean_corruption(x))
        if self.training:
            self.moments.update(raw_code)
        error, mse = reconstruction_error(self.decoder(self.activate(raw_code)), x, self.output)
        penalty = self.penalty(raw_code)
        if penalty is None:
            return Loss(error, {"mse": mse})
        return Loss(error + penalty, {"mse": mse, "penalty": penalty.detach()})

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the code of each image, uncorrupted, ``(B, features)``."""
        self.check_images(x)
        return self.activate(self.encoder(self.mean_corruption(x)))

    def decode(self, code: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the image of each code, ``(B, *event_shape)``."""
        return pixels_of(self.decoder(code), self.output)

    def sample_codes(
        self,
        count: int,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw codes like those of training; see :meth:`ImageModel.sample`."""
        return self.activate(self.moments.draw(count, temperature, generator))

    def corrupt(self, x: Tensor) -> Tensor:
        """Return what the encoder sees of the images in training."""
        return x

    def mean_corruption(self, x: Tensor) -> Tensor:
        """Return what it sees of them otherwise, the mean of :meth:`corrupt`."""
        return x

    def activate(self, raw_code: Tensor) -> Tensor:
        """Return the code that the encoder's output stands for."""
        return raw_code

    def penalty(self, raw_code: Tensor) -> Tensor | None:
        """Return what is added to the loss for the encoder's output, None for nothing."""
        return None


def pixels_of(raw: Tensor, output: str) -> Tensor:
    """Return what the decoder's output stands for."""
    return raw if output == "linear" else raw.sigmoid()


def reconstruction_error(raw: Tensor, target: Tensor, output: str) -> tuple[Tensor, Tensor]:
    """Return the loss, summed over an image, and the squared error of a pixel, without a graph.

    Both are means over the batch, float32 or wider.
    """
    wide = torch.promote_types(raw.dtype, torch.float32)
    raw, target = raw.to(wide), target.to(wide)
    squares = mse_loss(pixels_of(raw, output), target, reduction="sum")
    mse = squares.detach() / max(target.numel(), 1)
    if output == "bernoulli":
        error = binary_cross_entropy_with_logits(raw, target, reduction="sum")
    else:
        error = squares
    return error / max(len(target), 1), mse


@dataclass(frozen=True)
class LinearAEConfig:
    """Configuration of :class:`LinearAE`."""

    event_shape: tuple[int, ...]
    latent: int = option(32, "numbers of the code")
    bias: bool = option(True, "biases in both layers, which centre the data")

    def __post_init__(self) -> None:
        """Check the values."""
        check_at_least("LinearAE", "latent", self.latent, 1)


class LinearAE(AutoEncoder):
    r"""Linear auto-encoder, whose optimum is known: the principal subspace.

    With k numbers of code the least error of the matrix X of all images is

    .. math:: \min_{C, D} \|X - X C D\|_F^2 = \sum_{i > k} \sigma_i(X)^2,

    reached where D C projects onto the first k right singular vectors; with biases, onto those of
    the centred X. Every other critical point is a saddle. The layers are found up to an invertible
    k x k matrix: the decoder's columns span the subspace of PCA, but are not its vectors. Weights
    of the encoder at pixels that never vary stay what they were.

    Args:
        config: sizes.

    Source: Eckart and Young, 1936; Baldi and Hornik, "Neural networks and principal component
    analysis", 1989.
    """

    def __init__(self, config: LinearAEConfig) -> None:
        super().__init__(config.event_shape, config.latent, "linear")
        self.config = config
        inside = nn.Linear(self.dims, config.latent, bias=config.bias)
        outside = nn.Linear(config.latent, self.dims, bias=config.bias)
        self.encoder = nn.Sequential(nn.Flatten(), inside)
        self.decoder = nn.Sequential(outside, nn.Unflatten(1, config.event_shape))


@dataclass(frozen=True)
class AEConfig:
    """Configuration of :class:`AE`."""

    event_shape: tuple[int, ...]
    latent: int = option(64, "numbers of the code")
    network: str = option("mlp", "encoder and decoder", NETWORKS)
    hidden: int = option(256, "units of a hidden layer, or channels after the first halving")
    depth: int = option(1, "hidden layers, or halvings")
    output: str = option("sigmoid", OUTPUT_HELP, OUTPUTS)

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("AE", "network", self.network, NETWORKS)
        check_choice("AE", "output", self.output, OUTPUTS)
        for name in ("latent", "hidden"):
            check_at_least("AE", name, getattr(self, name), 1)
        check_at_least("AE", "depth", self.depth, 1 if self.network == "conv" else 0)


class AE(AutoEncoder):
    """Auto-encoder with hidden layers of ReLU and a linear code; see :class:`AutoEncoder`.

    Args:
        config: sizes and choices.
    """

    def __init__(self, config: AEConfig) -> None:
        super().__init__(config.event_shape, config.latent, config.output)
        self.config = config
        size = config.hidden, config.depth
        self.encoder = make_encoder(config.network, config.event_shape, config.latent, *size)
        self.decoder = make_decoder(config.network, config.latent, config.event_shape, *size)


@dataclass(frozen=True)
class DenoisingAEConfig(AEConfig):
    """Configuration of :class:`DenoisingAE`."""

    corruption: str = option("mask", "what training does to images", _CORRUPTIONS)
    mask: float = option(0.3, "probability that mask sets a pixel to zero")
    sigma: float = option(0.3, "standard deviation of gaussian noise")

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_choice("DenoisingAE", "corruption", self.corruption, _CORRUPTIONS)
        if not 0 <= self.mask <= 1:
            raise ValueError(f"DenoisingAE: mask must be in [0, 1], got {self.mask}")
        check_finite("DenoisingAE", "sigma", self.sigma)


class DenoisingAE(AE):
    r"""Auto-encoder that reconstructs images from corrupted ones.

    .. math:: \frac1B \sum_x \|x - D(E(\tilde x))\|^2

    In training :math:`\tilde x` is x with pixels set to zero at random, with probability q, the
    others being left as they are (no 1/(1 - q), as dropout has), or x with Gaussian noise.
    Evaluation, and the loss in evaluation mode, reconstruct without noise, from the mean of
    :math:`\tilde x`: x, or masked (1 - q) x, for an encoder that never saw a whole image takes one
    for a brighter image. Two optima are known, with S = E[x x^T]:

    - linear without bottleneck or bias, pixels masked with probability q: W = P Q^-1 with
      P = (1 - q) S and Q = (1 - q)^2 S off the diagonal, (1 - q) S on it;
    - Gaussian noise: :math:`D(E(\tilde x)) - \tilde x = \sigma^2 \nabla \log p_\sigma(\tilde x)`,
      the score of the noisy images.

    Codes are sampled like those of corrupted images, which are what the decoder knows.

    Args:
        config: sizes and choices.

    Source: Vincent et al., "Extracting and composing robust features with denoising autoencoders",
    2008; Vincent, "A connection between score matching and denoising autoencoders", 2011.
    """

    config: DenoisingAEConfig

    def __init__(self, config: DenoisingAEConfig) -> None:
        super().__init__(config)

    def corrupt(self, x: Tensor) -> Tensor:
        """Return noisy images."""
        if self.config.corruption == "gaussian":
            return x + self.config.sigma * torch.randn_like(x)
        return x * (torch.rand_like(x, dtype=torch.float32) >= self.config.mask)

    def mean_corruption(self, x: Tensor) -> Tensor:
        """Return the mean of the noisy images."""
        return x if self.config.corruption == "gaussian" else (1 - self.config.mask) * x


@dataclass(frozen=True)
class SparseAEConfig(AEConfig):
    """Configuration of :class:`SparseAE`."""

    latent: int = option(1024, "numbers of the code, more than pixels as a rule")
    depth: int = option(0, "hidden layers, or halvings")
    sparsity: str = option("kl", "what keeps codes sparse", _SPARSITIES)
    rho: float = option(0.05, "mean activation that kl wants")
    beta: float = option(3.0, "factor of kl")
    l1: float = option(0.01, "factor of l1")
    active: int = option(32, "numbers of a code that top keeps")

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_choice("SparseAE", "sparsity", self.sparsity, _SPARSITIES)
        if not 0 < self.rho < 1:
            raise ValueError(f"SparseAE: rho must be in (0, 1), got {self.rho}")
        check_finite("SparseAE", "beta", self.beta)
        check_finite("SparseAE", "l1", self.l1)
        if not 1 <= self.active <= self.latent:
            raise ValueError(
                f"SparseAE: active must be in [1, latent], got {self.active} of {self.latent}"
            )


class SparseAE(AE):
    r"""Auto-encoder with many numbers of code, few of which are active.

    - ``kl``: sigmoid codes h, whose batch means :math:`\hat\rho_j` are drawn to :math:`\rho`:

      .. math::
          \beta \sum_j \rho \log \frac{\rho}{\hat\rho_j}
          + (1 - \rho) \log \frac{1 - \rho}{1 - \hat\rho_j}

      is added to the loss, computed from logarithms: a unit that never fires costs a finite price
      and has a gradient. A sample's loss depends on its batch.
    - ``l1``: ReLU codes; adds :math:`\lambda \|h\|_1`, a mean over the batch.
    - ``top``: the largest ``active`` numbers of each code are kept, exactly so many, and the others
      are zero; nothing is added.

    Sampling draws the encoder's outputs, and codes are made of them as in training.

    Args:
        config: sizes and choices.

    Source: Ng, "Sparse autoencoder", CS294A lecture notes, 2011; Makhzani and Frey, "k-sparse
    autoencoders", 2013, arXiv:1312.5663.
    """

    config: SparseAEConfig

    def __init__(self, config: SparseAEConfig) -> None:
        super().__init__(config)

    def activate(self, raw_code: Tensor) -> Tensor:
        """Return the sparse code of the encoder's output."""
        if self.config.sparsity == "kl":
            return raw_code.sigmoid()
        if self.config.sparsity == "l1":
            return raw_code.relu()
        values, places = raw_code.topk(self.config.active, dim=1)
        return torch.zeros_like(raw_code).scatter(1, places, values)

    def penalty(self, raw_code: Tensor) -> Tensor | None:
        """Return the penalty of the encoder's output ``(B, features)``, a scalar."""
        config = self.config
        if config.sparsity == "top":
            return None
        raw_code = raw_code.to(torch.promote_types(raw_code.dtype, torch.float32))
        if config.sparsity == "l1":
            return config.l1 * raw_code.relu().sum(1).mean()
        count = math.log(max(len(raw_code), 1))
        log_on = logsigmoid(raw_code).logsumexp(0) - count
        log_off = logsigmoid(-raw_code).logsumexp(0) - count
        rho = config.rho
        on, off = rho * (math.log(rho) - log_on), (1 - rho) * (math.log1p(-rho) - log_off)
        return config.beta * (on + off).sum()


def check_finite(model: str, name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is at least 0 and finite."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{model}: {name} must be at least 0 and finite, got {value}")
