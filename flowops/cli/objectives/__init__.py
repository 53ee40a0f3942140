"""What each kind of model is trained, judged and shown by."""

from __future__ import annotations

from flowops.cli.objectives.base import Objective
from flowops.cli.objectives.bound import BoundObjective
from flowops.cli.objectives.density import DensityObjective
from flowops.cli.objectives.loss import (
    BottleneckObjective,
    ClusterObjective,
    InfoMaxObjective,
    ReconstructionObjective,
)
from flowops.distributions import Flow
from flowops.models import VIB, AutoEncoder, ClusterVAE, ImageModel, InfoMax, LatentVariableModel

__all__ = ["Objective", "objective_of"]


def objective_of(model: Flow | ImageModel, levels: int) -> Objective:
    """Return the objective of models like ``model`` on images of so many levels."""
    if isinstance(model, Flow):
        return DensityObjective(levels)
    if isinstance(model, LatentVariableModel):
        return BoundObjective(levels, model.pixels)
    if isinstance(model, AutoEncoder):
        return ReconstructionObjective(levels, model)
    if isinstance(model, VIB):
        return BottleneckObjective(levels)
    if isinstance(model, ClusterVAE):
        return ClusterObjective(levels, model)
    if isinstance(model, InfoMax):
        return InfoMaxObjective(levels, model)
    raise TypeError(f"objective_of: model must be one of flowops.models, got {type(model)}")
