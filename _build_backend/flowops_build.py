"""PEP 517 backend: setuptools, plus the torch that the wheel is built against.

A PyTorch extension must be built against the torch that will load it, yet build isolation hides
that torch. In an environment that has torch this backend finds it from inside the isolation and
builds against it; in one that has none it asks for one exact version, which the wheel then
requires, so that build and run time agree.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setuptools import build_meta

TORCH_PIN = "torch==2.13.0"

_FIND_TORCH = """
import importlib.util, json, sys
spec = importlib.util.find_spec("torch")
print(json.dumps({"torch": spec.origin if spec else None, "path": sys.path}))
"""


def installed_torch() -> tuple[str | None, list[str]]:
    """The torch of the environment that runs the build, seen from outside build isolation.

    Returns:
        The path of its ``torch/__init__.py`` (None where torch is not installed) and that
        environment's import path.
    """
    # -E ignores the PYTHONPATH through which pip lays its isolated overlay over this interpreter.
    command = [sys.executable, "-E", "-c", _FIND_TORCH]
    found = json.loads(subprocess.check_output(command, cwd=os.path.abspath(os.sep), text=True))
    return found["torch"], [entry for entry in found["path"] if entry]


def torch_requirement(version: str, location: str | Path) -> str:
    """What a wheel requires that was built against torch ``version`` imported from ``location``.

    The minor version, since torch keeps its binary interface within one; the exact version when
    that torch was brought in for this build alone.
    """
    outer, _ = installed_torch()
    if outer is not None and os.path.samefile(Path(outer).parent, Path(location)):
        major, minor = version.split(".")[:2]
        return f"torch~={major}.{minor}.0"
    return f"torch=={version.split('+')[0]}"


def _torch_to_fetch() -> list[str]:
    return [] if installed_torch()[0] is not None else [TORCH_PIN]


def _against_torch(hook: Callable[..., str], *arguments: Any) -> str:
    if importlib.util.find_spec("torch") is None:
        _, path = installed_torch()
        sys.path.extend(entry for entry in path if entry not in sys.path)
    return hook(*arguments)


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """A source distribution needs no torch."""
    return build_meta.get_requires_for_build_sdist(config_settings)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The pinned torch where the environment has none, else nothing."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_to_fetch()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """As for a wheel."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_to_fetch()


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: dict[str, Any] | None = None
) -> str:
    """Metadata that name the torch this build uses."""
    return _against_torch(
        build_meta.prepare_metadata_for_build_wheel, metadata_directory, config_settings
    )


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: dict[str, Any] | None = None
) -> str:
    """As for a wheel."""
    return _against_torch(
        build_meta.prepare_metadata_for_build_editable, metadata_directory, config_settings
    )


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """A source distribution, which is the same for every torch."""
    return build_meta.build_sdist(sdist_directory, config_settings)


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """A wheel built against the installed torch, or the pinned one."""
    return _against_torch(
        build_meta.build_wheel, wheel_directory, config_settings, metadata_directory
    )


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """An editable wheel; its native modules lie in the source tree."""
    return _against_torch(
        build_meta.build_editable, wheel_directory, config_settings, metadata_directory
    )
