"""Kernels as functions; see each function's docstring for formula, shapes and cost."""

from flowops.ops.actnorm import actnorm, actnorm_inverse, actnorm_statistics
from flowops.ops.affine_coupling import ScaleMap, affine_coupling, affine_coupling_inverse
from flowops.ops.dequantize_logit import dequantize_logit, logit, logit_inverse, rand
from flowops.ops.gaussian_log_prob import gaussian_log_prob
from flowops.ops.gaussian_rsample import (
    gaussian_rsample,
    gaussian_rsample_kl,
    randn,
    random_key,
)
from flowops.ops.invertible_conv1x1 import (
    invertible_conv1x1,
    invertible_conv1x1_full,
    invertible_conv1x1_lu,
)
from flowops.ops.linear_attention import linear_attention, linear_attention_state
from flowops.ops.logistic_mixture_log_prob import logistic_mixture_log_prob
from flowops.ops.mlp import mlp
from flowops.ops.rational_quadratic_spline import (
    rational_quadratic_spline,
    rational_quadratic_spline_inverse,
)
from flowops.ops.spectral_norm import spectral_norm

__all__ = [
    "ScaleMap",
    "actnorm",
    "actnorm_inverse",
    "actnorm_statistics",
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
    "linear_attention_state",
    "logistic_mixture_log_prob",
    "logit",
    "logit_inverse",
    "mlp",
    "rand",
    "randn",
    "random_key",
    "rational_quadratic_spline",
    "rational_quadratic_spline_inverse",
    "spectral_norm",
]
