"""Shared fixtures.

``--device`` picks what the op tests run on: cpu, cuda, or simt (CUDA kernels on the CPU).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import flowops  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda", "simt"), default="cpu")
    parser.addoption(
        "--sanitize",
        action="store_true",
        help="with --device simt: kernels under AddressSanitizer and UBSan, see .ci/simt_sanitize",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Put the CUDA kernels, compiled for the CPU, in the place of the CPU kernels."""
    if config.getoption("--device") == "simt":
        from simt import build

        library = build.build(sanitize=config.getoption("--sanitize"))
        # The dispatcher writes to the terminal that kernels are replaced, which is the purpose.
        with _silent_stderr():
            torch.ops.load_library(library)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device whose tensors the op tests use; ``simt`` runs the CUDA kernels on CPU tensors."""
    name = request.config.getoption("--device")
    return torch.device("cpu" if name == "simt" else name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_make_parametrize_id(config: pytest.Config, val: object) -> str | None:
    """Call a dtype by its name, so that ``-k float32`` selects."""
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None
