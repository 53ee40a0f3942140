"""Pure-PyTorch twin of :mod:`flowops.ops.gaussian_rsample`: the executable specification."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
# Below this softplus(s) = exp(s) to rounding, and may be no normal number.
_SOFTPLUS_TAIL = -40.0


def philox4x32(counter: Sequence[Tensor], seed: Sequence[Tensor]) -> list[Tensor]:
    """Return a block of Philox4x32-10, four words as int64 in [0, 2**32).

    Args:
        counter: Four words.
        seed: Two words.

    Source:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed
    for _ in range(10):
        high0, low0 = _multiply_wide(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply_wide(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def philox_blocks(count: int, per: int, key: Tensor) -> list[Tensor]:
    """Return the words of the first blocks of a stream, for ``count`` numbers, ``per`` a block."""
    block = torch.arange((count + per - 1) // per, device=key.device)
    seed, offset = key[0], key[1]
    return philox4x32(
        [block & _MASK, block >> 32, offset & _MASK, (offset >> 32) & _MASK],
        [seed & _MASK, (seed >> 32) & _MASK],
    )


def _multiply_wide(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    product = a * b  # modulo 2**64
    return (product >> 32) & _MASK, product & _MASK


def box_muller(radius: Tensor, angle: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """Return two normal numbers of words as values in [0, 1) and [-1/2, 1/2), in float64.

    Args:
        radius: First word times ``unit``, already rounded to the type of the stream.
        angle: Second word as a signed number, times ``unit``.
        unit: 2 to the minus number of bits of a word.
    """
    r = torch.sqrt(-2 * torch.log((radius + unit / 2).double()))
    turn = angle.double() * (2 * math.pi)
    return r * torch.cos(turn), r * torch.sin(turn)


def randn(size: Sequence[int], *, key: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """See :func:`flowops.ops.randn`."""
    count = math.prod(size)
    words = philox_blocks(count, 2 if dtype == torch.float64 else 4, key)
    if dtype == torch.float64:
        radius = words[1].double() * 2.0**-32 + words[0].double() * 2.0**-64
        angle = (words[3] << 32 | words[2]).double() * 2.0**-64
        normals = torch.stack(box_muller(radius, angle, 2.0**-64), 1)
    else:
        pairs = []
        for radius, angle in (words[:2], words[2:]):
            signed = angle - ((angle >> 31) << 32)
            pairs += box_muller(radius.float() * 2.0**-32, signed.double() * 2.0**-32, 2.0**-32)
        normals = torch.stack(pairs, 1)
    return normals.flatten()[:count].reshape(tuple(size)).to(dtype)


def posterior(
    mean: Tensor | None, scale: Tensor | None, params: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the means and the raw scales of a call, the halves of ``params`` where it is given.

    Raises:
        ValueError: If not exactly one of both is given, or ``params`` has no halves.
    """
    if params is None:
        if mean is None or scale is None:
            got = "neither" if mean is scale else "one of them"
            raise ValueError(
                f"gaussian_rsample: mean and scale must be given where params is None, got {got}"
            )
        return mean, scale
    if mean is not None or scale is not None:
        raise ValueError(
            "gaussian_rsample: params must be None where mean or scale is given, got a tensor"
        )
    if params.dim() < 2 or params.size(1) % 2:
        raise ValueError(
            "gaussian_rsample: params must have shape (batch, 2 channels, ...), "
            f"got {list(params.shape)}"
        )
    channels = params.size(1) // 2
    return params[:, :channels], params[:, channels:]


def gaussian_rsample(
    mean: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    params: Tensor | None = None,
    form: str = "logvar",
    prior: tuple[Tensor, Tensor] | None = None,
    residual: bool = False,
    key: Tensor,
) -> Tensor:
    """See :func:`flowops.ops.gaussian_rsample`."""
    return gaussian_rsample_kl(
        mean, scale, params=params, form=form, prior=prior, residual=residual, key=key
    )[0]


def gaussian_rsample_kl(
    mean: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    params: Tensor | None = None,
    form: str = "logvar",
    prior: tuple[Tensor, Tensor] | None = None,
    residual: bool = False,
    key: Tensor,
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.gaussian_rsample_kl`."""
    mean, scale = posterior(mean, scale, params)
    wide = torch.promote_types(mean.dtype, torch.float32)
    m, (std, log_std) = mean.to(wide), _deviation(scale.to(wide), form)
    noise = randn(mean.shape, key=key, dtype=wide)
    distance, ratio, log_ratio, z = m, std, log_std, m + std * noise
    if prior is not None:
        prior_mean = prior[0].to(wide)
        prior_std, prior_log_std = _deviation(prior[1].to(wide), form)
        if residual:
            distance = m / prior_std
            z = prior_mean + m + prior_std * std * noise
        else:
            distance, ratio = (m - prior_mean) / prior_std, std / prior_std
            log_ratio = log_std - prior_log_std
    kl = 0.5 * (distance.square() + ratio.square() - 1) - log_ratio
    return z.to(mean.dtype), kl.flatten(1).sum(1)


def _deviation(raw: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Standard deviation and its logarithm."""
    if form == "logvar":
        return torch.exp(0.5 * raw), 0.5 * raw
    if form == "log_std":
        return torch.exp(raw), raw
    if form == "std":
        return raw, torch.log(raw)
    std = torch.logaddexp(raw, torch.zeros_like(raw))
    # Where the deviation underflows, its logarithm is still raw, and neither branch may give NaN.
    tail = raw < _SOFTPLUS_TAIL
    return std, torch.where(tail, raw, torch.log(torch.where(tail, torch.ones_like(raw), std)))
