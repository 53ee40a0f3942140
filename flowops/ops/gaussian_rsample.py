"""Reparameterised Gaussian sampling with its KL divergence, and the random stream behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowops import reference
from flowops.ops._dispatch import (
    accumulation_dtype,
    empty_like_layout,
    index_of,
    transforms_active,
    typed_call,
)
from flowops.reference.gaussian_rsample import posterior

_NAME = "gaussian_rsample"
_kernel = typed_call("gaussian_rsample")
_random_key = torch.ops.flowops.random_key.default
FORMS = ("logvar", "log_std", "std", "softplus")


def gaussian_rsample(
    mean: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    params: Tensor | None = None,
    form: str = "logvar",
    prior: tuple[Tensor, Tensor] | None = None,
    residual: bool = False,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    r"""Draw from diagonal Gaussians by reparameterisation, in one pass.

    .. math:: z = \mu + \sigma \epsilon, \qquad \epsilon \sim N(0, I)

    See :func:`gaussian_rsample_kl`, which returns the KL divergence too and has the arguments; here
    ``prior`` is only needed for ``residual``.

    Returns:
        z like the means, differentiable in all arguments.

    Raises:
        ValueError: If an argument does not fit the others.

    Example:
        >>> key = torch.tensor([1, 2])
        >>> gaussian_rsample(torch.zeros(1, 2), torch.zeros(1, 2), key=key)
        tensor([[-0.4289, -0.1408]])
    """
    return _run(mean, scale, params, form, prior, residual, generator, key, False)[0]


def gaussian_rsample_kl(
    mean: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    params: Tensor | None = None,
    form: str = "logvar",
    prior: tuple[Tensor, Tensor] | None = None,
    residual: bool = False,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draw from diagonal Gaussians and return the KL divergence from the prior, in one pass.

    .. math::
        z = \mu + \sigma \epsilon, \qquad
        \mathrm{KL} = \sum \tfrac12 \left[\left(\frac{\mu - \mu_p}{\sigma_p}\right)^2 +
        \frac{\sigma^2}{\sigma_p^2} - 1\right] - \log \frac{\sigma}{\sigma_p},

    with :math:`\sigma` of the raw scale :math:`s`: :math:`e^{s/2}` ("logvar"), :math:`e^s`
    ("log_std"), :math:`s` ("std") or :math:`\log(1 + e^s)` ("softplus").

    Shapes:
        All of shape (B, C, \*S) with any number of pixel dimensions, none included; ``params``:
        (B, 2C, \*S). Channel slices of a net's output (``h[:, ::2]``), expanded tensors and
        channels_last are taken as they are.

    Args:
        mean: :math:`\mu`, float64, float32, float16 or bfloat16.
        scale: :math:`s`, dtype and shape of ``mean``.
        params: A net's output whole, dtype as for ``mean``: :math:`\mu`, then :math:`s` along
            dimension 1, in the place of ``mean`` and ``scale``.
        form: "logvar", "log_std", "std" (at least 0) or "softplus".
        prior: :math:`\mu_p` and the raw scale of :math:`\sigma_p` in the same form, dtype and shape
            of z; None for :math:`N(0, I)`.
        residual: NVAE's form: ``mean`` and ``scale`` are relative to the prior, so that
            :math:`\mu = \mu_p + \Delta\mu` and :math:`\sigma = \sigma_p \Delta\sigma`.
        generator: Where the stream is drawn from, on any device; None for the default generator of
            the device of ``mean`` or ``params``.
        key: The stream itself, from :func:`random_key`; the same key gives the same noise. Not
            together with ``generator``.

    Returns:
        z like the means, and the KL in nats, shape (B,), float64 for float64 and else float32.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        Arithmetic in float32 for the 16-bit types, so that no exponential overflows them. Element
        i of z, counted in row-major order, takes normal number i of the stream (see :func:`randn`):
        the same for any memory layout, thread count and device. The backward pass makes the noise
        again from the key. The KL of a sample is a sum in a fixed order. Differentiable twice.
        Under autocast the op runs in float32. ``torch.func`` transforms and forward-mode AD take
        :func:`flowops.reference.gaussian_rsample_kl`; under ``vmap`` its ``randomness`` decides.

    Cost:
        One pass: reads mean and scale (and the prior's) once, writes z once. The backward pass
        keeps them and 16 bytes, not the noise. It writes the gradient of ``params`` whole; from
        ``mean, scale = h.chunk(2, 1)`` autograd would concatenate it, a pass more.

    Source:
        Kingma and Welling, Auto-encoding variational Bayes, 2013, arXiv:1312.6114, section 2.4 and
        appendix B; residual form: Vahdat and Kautz, NVAE, 2020, arXiv:2007.03898, section 3.2.

    Example:
        >>> mean, logvar = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
        >>> gaussian_rsample_kl(mean, logvar)[1]
        tensor([2.5000])
    """
    z, kl = _run(mean, scale, params, form, prior, residual, generator, key, True)
    return z, kl


def randn(
    *size: int | Sequence[int],
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw standard normal numbers from the stream that the sampling ops use.

    Block :math:`b` of the stream (seed, offset) is Philox4x32-10 of the counter (b, offset) under
    the key seed, 64 bits each. Its four words give four numbers by two Box-Muller transforms, in
    float64 two numbers by one. Element i of the result, counted in row-major order, is number i:
    the same on every device to rounding, for any thread count, and a prefix of any longer draw.

    Args:
        size: Shape, as integers or one sequence.
        generator: Where the stream is drawn from, on any device; None for the default generator of
            ``device``.
        key: The stream itself, from :func:`random_key`. Not together with ``generator``.
        dtype: float64, float32, float16 or bfloat16; None for the default dtype. The three smaller
            types hold the same numbers, rounded.
        device: Of the result; None for that of ``key``, else the default device.

    Returns:
        A contiguous tensor.

    Raises:
        ValueError: If an argument does not fit the others.

    Source:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.

    Example:
        >>> key = random_key()
        >>> torch.equal(randn(2, 3, key=key).flatten(), randn(6, key=key))
        True
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    shape, key = shape_and_key("randn", size, generator, key, device)
    if transforms_active():
        return reference.randn(shape, key=key, dtype=dtype)
    return torch.ops.flowops.gaussian_noise(key, shape, dtype)


def random_key(
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the seed and the offset of a stream, 128 random bits.

    Args:
        generator: Where they are drawn from; None for the default generator of ``device``.
        device: Of the key; None for that of ``generator``, else the default device.

    Returns:
        Two int64, to be given as ``key`` to any number of calls, on any device.

    Example:
        >>> random_key(generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2])
    """
    if generator is not None:
        device = generator.device if device is None else device
    return key_for("random_key", torch.empty(0, device=device), generator, None)


def shape_and_key(
    op: str,
    size: Sequence[int | Sequence[int]],
    generator: torch.Generator | None,
    key: Tensor | None,
    device: torch.device | str | None,
) -> tuple[list[int], Tensor]:
    """The shape and the stream, on its device, of a call that fills a tensor."""
    shape = [n for part in size for n in (part if isinstance(part, Sequence) else [part])]
    if key is None or generator is not None:
        target = torch.empty(0, device=device) if key is None else key
        return shape, key_for(op, target, generator, key)
    return shape, key if device is None else key.to(device)


def key_for(op: str, like: Tensor, generator: torch.Generator | None, key: Tensor | None) -> Tensor:
    """The stream of a call, on the device of ``like``."""
    if key is not None:
        if generator is not None:
            message = f"{op}: generator must be None where a key is given, got {generator}"
            raise ValueError(message)
        return key
    if generator is None and not transforms_active():
        return _random_key(like)
    device = like.device if generator is None else generator.device
    key = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator, device=device)
    return key if device == like.device else key.to(like.device, non_blocking=True)


def _run(
    mean: Tensor | None,
    scale: Tensor | None,
    params: Tensor | None,
    form: str,
    prior: tuple[Tensor, Tensor] | None,
    residual: bool,
    generator: torch.Generator | None,
    key: Tensor | None,
    with_kl: bool,
) -> tuple[Tensor, Tensor]:
    form_index = index_of(_NAME, "form", form, FORMS)
    like = posterior(mean, scale, None)[0] if params is None else params
    key = key_for(_NAME, like, generator, key)
    if transforms_active():
        return reference.gaussian_rsample_kl(
            mean, scale, params=params, form=form, prior=prior, residual=residual, key=key
        )
    prior_mean, prior_scale = (None, None) if prior is None else prior
    return _kernel(mean, scale, key, prior_mean, prior_scale, params, form_index, residual, with_kl)


def _check_like_mean(name: str, value: Tensor, mean: Tensor) -> None:
    torch._check_value(
        value.shape == mean.shape,
        lambda: (
            f"{_NAME}: {name} must have shape {list(mean.shape)} (like mean), "
            f"got {list(value.shape)}"
        ),
    )


@torch.library.register_fake("flowops::gaussian_rsample")
def _(
    mean: Tensor | None,
    scale: Tensor | None,
    key: Tensor,
    prior_mean: Tensor | None,
    prior_scale: Tensor | None,
    params: Tensor | None,
    form: int,
    residual: bool,
    with_kl: bool,
) -> tuple[Tensor, Tensor]:
    mean, scale = posterior(mean, scale, params)
    named = (("scale", scale), ("prior mean", prior_mean), ("prior scale", prior_scale))
    for name, value in named:
        if value is not None:
            _check_like_mean(name, value, mean)
    return empty_like_layout(mean), mean.new_empty(
        mean.size(0), dtype=accumulation_dtype(mean.dtype)
    )


@torch.library.register_fake("flowops::gaussian_rsample_backward")
def _(
    grad_z: Tensor,
    grad_kl: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    key: Tensor,
    prior_mean: Tensor | None,
    prior_scale: Tensor | None,
    params: Tensor | None,
    form: int,
    residual: bool,
    with_kl: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def gradient(like: Tensor | None) -> Tensor:
        return grad_z.new_empty(0) if like is None else empty_like_layout(like)

    used = residual or with_kl
    return (
        gradient(mean),
        gradient(scale),
        gradient(prior_mean if used else None),
        gradient(prior_scale if used else None),
        gradient(params),
    )


@torch.library.register_fake("flowops::gaussian_noise")
def _(key: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return key.new_empty(size, dtype=dtype)


@torch.library.register_fake("flowops::random_key")
def _(like: Tensor) -> Tensor:
    return like.new_empty(2, dtype=torch.int64)
