"""Networks as flows: modules over :mod:`flowops.ops`."""

from .actnorm import ActNorm, BatchNorm, DiagonalScale
from .attention import LinearAttention
from .base import Bijector
from .batch_norm_swish import BatchNormSwish
from .conditioner import MLP, GatedResNet, GlowConvNet
from .containers import Inverse, MultiScale, Sequential
from .conv1x1 import InvertibleConv1x1, PreparedConv, prepare
from .convolution import ActNormConv2d, ZeroConv2d
from .coupling import AdditiveCoupling, AffineCoupling, checkerboard_mask
from .lipschitz import (
    LipschitzConvNet,
    LipschitzMLP,
    LipSwish,
    lipschitz_constant,
    settle_spectral_norms,
)
from .masked import MADE, ResidualMLP
from .permutation import (
    Flatten,
    Permutation,
    Squeeze,
    even_odd_permutation,
    ordered_squeeze_permutation,
    random_permutation,
    reverse_permutation,
)
from .preprocess import Logit, Shift, binarize, dequantize, preprocessing
from .residual import InvertibleResidual
from .residual_logdet import Exact, PowerSeries, Roulette, terms_for, truncation_bound
from .reversible import ReversibleSequential
from .sampling import GaussianRsample
from .spline import AutoregressiveSpline, RationalQuadraticSpline, spline_parameters
from .split import LearnedPrior, Split

__all__ = [
    "MADE",
    "MLP",
    "ActNorm",
    "ActNormConv2d",
    "AdditiveCoupling",
    "AffineCoupling",
    "AutoregressiveSpline",
    "BatchNorm",
    "BatchNormSwish",
    "Bijector",
    "DiagonalScale",
    "Exact",
    "Flatten",
    "GatedResNet",
    "GaussianRsample",
    "GlowConvNet",
    "Inverse",
    "InvertibleConv1x1",
    "InvertibleResidual",
    "LearnedPrior",
    "LinearAttention",
    "LipSwish",
    "LipschitzConvNet",
    "LipschitzMLP",
    "Logit",
    "MultiScale",
    "Permutation",
    "PowerSeries",
    "PreparedConv",
    "RationalQuadraticSpline",
    "ResidualMLP",
    "ReversibleSequential",
    "Roulette",
    "Sequential",
    "Shift",
    "Split",
    "Squeeze",
    "ZeroConv2d",
    "binarize",
    "checkerboard_mask",
    "dequantize",
    "even_odd_permutation",
    "lipschitz_constant",
    "ordered_squeeze_permutation",
    "prepare",
    "preprocessing",
    "random_permutation",
    "reverse_permutation",
    "settle_spectral_norms",
    "spline_parameters",
    "terms_for",
    "truncation_bound",
]
