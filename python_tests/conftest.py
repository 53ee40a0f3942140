"""Shared fixtures. ``--device`` picks what the op tests run on: cpu, cuda, or simt (CUDA kernels on the CPU)."""

from __future__ import annotations

import pytest
import torch

import flowops  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda", "simt"), default="cpu")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device whose tensors the op tests use; ``simt`` runs the CUDA kernels on CPU tensors."""
    name = request.config.getoption("--device")
    return torch.device("cpu" if name == "simt" else name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
