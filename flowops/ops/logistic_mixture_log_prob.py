"""Log-probability of discrete values under a mixture of logistics, summed over each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from flowops import reference
from flowops.ops._dispatch import (
    accumulation_dtype,
    empty_like_layout,
    transforms_active,
    typed_call,
)

_kernel = typed_call("logistic_mixture_log_prob")


def logistic_mixture_log_prob(
    x: Tensor, params: Tensor, *, levels: int = 256, min_log_scale: float = -7.0
) -> Tensor:
    r"""Return the log-probability of each image under a discretised mixture of logistics.

    With :math:`u = 2 x / (L - 1) - 1` and :math:`\delta = 1 / (L - 1)`,

    .. math::
        \log p(x) = \sum_{\text{pixels}} \log \sum_k \pi_k \prod_c
        \left[F\left(\frac{u_c + \delta - m_{kc}}{e^{s_{kc}}}\right) -
        F\left(\frac{u_c - \delta - m_{kc}}{e^{s_{kc}}}\right)\right],
        \quad F(t) = \frac{1}{1 + e^{-t}}

    where the bin of the value 0 reaches down to :math:`-\infty` and that of L - 1 up to
    :math:`\infty`, so that the probabilities of all values sum to 1. Of three colours, the means
    of the later move with the values of the earlier: :math:`m_1 + \tanh(q_0) u_0` and
    :math:`m_2 + \tanh(q_1) u_0 + \tanh(q_2) u_1`.

    Shapes:
        ``x`` has shape (B, C, \*S) with one or three colours and any number of pixel dimensions,
        none included; ``params`` (B, P, \*S). For K components P = 3 K with one colour, [logits,
        means, log-scales], and P = 10 K with three: [logits, then of each colour means, log-scales
        and one q]. It is the layout of PixelCNN++, VDVAE and NVAE. Channel slices and
        channels_last are taken as they are.

    Args:
        x: Values 0, ..., ``levels - 1``, uint8 or of the dtype of ``params``. They are not
            checked, and have no gradient.
        params: What a net gives, float64, float32, float16 or bfloat16.
        levels: L, 2 to 65536.
        min_log_scale: What log-scales below count as.

    Returns:
        Nats, shape (B,), float64 for float64 and else float32, differentiable in ``params``. Bits
        a dimension: divide by ``-math.log(2) * x[0].numel()``.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        Arithmetic in float32 for the 16-bit types. The probability of a bin is
        :math:`\sigma(a) \sigma(-b) (1 - e^{b - a})` with its ends a and b in standard units: exact,
        where the difference of two values of F loses all digits of an unlikely value. The sum of a
        sample is in a fixed order, the same for any thread count and batch. Differentiable twice.
        Under autocast the op runs in float32. ``torch.func`` transforms and forward-mode AD take
        :func:`flowops.reference.logistic_mixture_log_prob`.

    Cost:
        One pass over ``x`` and ``params``: 4 C + 2 exponentials for each pixel and component, and
        three tanh where C is 3. The backward pass reads them once more, and writes the gradient of
        ``params``.

    Source:
        Salimans et al., PixelCNN++, 2017, arXiv:1701.05517, sections 2.1 and 2.2. Their 10^-5
        below which a density stands for the bin is not needed; nor do values next to the last one
        count as the last, as in NVAE's code, where the probabilities sum to up to 2.

    Example:
        >>> x = torch.tensor([[0], [255]], dtype=torch.uint8)
        >>> logistic_mixture_log_prob(x, torch.zeros(2, 30))
        tensor([-1.3104, -1.3104])
    """
    if transforms_active():
        return reference.logistic_mixture_log_prob(
            x, params, levels=levels, min_log_scale=min_log_scale
        )
    return _kernel(x, params, levels, min_log_scale)


@torch.library.register_fake("flowops::logistic_mixture_log_prob")
def _(x: Tensor, params: Tensor, levels: int, min_log_scale: float) -> Tensor:
    return params.new_empty(x.size(0), dtype=accumulation_dtype(params.dtype))


@torch.library.register_fake("flowops::logistic_mixture_log_prob_backward")
def _(grad: Tensor, x: Tensor, params: Tensor, levels: int, min_log_scale: float) -> Tensor:
    return empty_like_layout(params)
