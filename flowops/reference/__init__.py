"""Pure-PyTorch twins of :mod:`flowops.ops`: same names, same arguments, same results.

They define what the kernels must compute, serve `torch.func` transforms and forward-mode AD, and
run wherever PyTorch runs. This package imports torch alone.
"""

from .actnorm import actnorm, actnorm_inverse, actnorm_statistics
from .affine_coupling import affine_coupling, affine_coupling_inverse
from .dequantize_logit import add_noise, dequantize_logit, logit, logit_inverse, rand
from .gaussian_log_prob import gaussian_log_prob
from .gaussian_rsample import gaussian_rsample, gaussian_rsample_kl, randn
from .invertible_conv1x1 import (
    invertible_conv1x1,
    invertible_conv1x1_full,
    invertible_conv1x1_lu,
)
from .linear_attention import linear_attention, linear_attention_features, linear_attention_state
from .logistic_mixture_log_prob import logistic_mixture_log_prob
from .mlp import mlp
from .rational_quadratic_spline import (
    rational_quadratic_spline,
    rational_quadratic_spline_inverse,
)
from .spectral_norm import spectral_norm

__all__ = [
    "actnorm",
    "actnorm_inverse",
    "actnorm_statistics",
    "add_noise",
    "affine_coupling",
    "affine_coupling_inverse",
    "dequantize_logit",
    "gaussian_log_prob",
    "gaussian_rsample",
    "gaussian_rsample_kl",
    "invertible_conv1x1",
    "invertible_conv1x1_full",
    "invertible_conv1x1_lu",
    "linear_attention",
    "linear_attention_features",
    "linear_attention_state",
    "logistic_mixture_log_prob",
    "logit",
    "logit_inverse",
    "mlp",
    "rand",
    "randn",
    "rational_quadratic_spline",
    "rational_quadratic_spline_inverse",
    "spectral_norm",
]
