"""Layers of normflows, by their names and arguments, on flowops kernels."""

from __future__ import annotations

from flowops.compat._twins import Twin

TWINS: dict[str, type[Twin]] = {}
