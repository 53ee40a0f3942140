"""Flows as distributions, their base densities, and densities with parameters from a net."""

from .base import StandardLogistic, StandardNormal
from .flow import Flow, FlowTransform
from .logistic_mixture import LogisticMixture
from .normal import Normal

__all__ = [
    "Flow",
    "FlowTransform",
    "LogisticMixture",
    "Normal",
    "StandardLogistic",
    "StandardNormal",
]
