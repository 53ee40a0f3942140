"""The folder of one run: its config.json, metrics.jsonl, checkpoint.safetensors and pictures."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowops.cli.errors import FAILURE, CommandError
from flowops.cli.files import TEMPORARY_PREFIX, JsonLines, write_json
from flowops.cli.settings import RunConfig, option_name

CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"


class RunFolder:
    """Paths and life cycle of a run's folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = JsonLines(path / "metrics.jsonl")
        self.samples = path / "samples.png"
        self.curve = path / "curve.png"

    def has_config(self) -> bool:
        """Say whether a run was begun here."""
        return (self.path / CONFIG).is_file()

    def has_checkpoint(self) -> bool:
        """Say whether there is something to go on from."""
        return (self.path / CHECKPOINT).is_file()

    def read_config(self) -> RunConfig:
        """Read ``config.json``.

        Raises:
            CommandError: It is absent or not one of this version's.
        """
        path = self.path / CONFIG
        if not path.is_file():
            raise CommandError(f"{self.path} is no run folder: it holds no {CONFIG}")
        try:
            return RunConfig.from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(
                f"{path} is not a config.json of this version ({error!r})", FAILURE
            ) from error

    def create(self, config: RunConfig) -> None:
        """Make the folder and its ``config.json``.

        Raises:
            CommandError: The folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"cannot make {self.path}: {error.strerror or error}") from error
        write_json(self.path / CONFIG, config.to_json())

    def refuse_if_used(self) -> None:
        """Let a new run begin only where nothing would be lost.

        Raises:
            CommandError: The path is a file, holds a run, or holds anything else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise CommandError(f"--out {self.path} must be a folder, got a file")
        if self.has_config():
            raise CommandError(
                f"{self.path} holds a run already; --resume goes on with it, --out names another"
            )
        if self.path.is_dir():
            others = [
                item for item in self.path.iterdir() if not item.name.startswith(TEMPORARY_PREFIX)
            ]
            if others:
                raise CommandError(
                    f"--out {self.path} must be new or empty, but holds {others[0].name}"
                )

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Hold the folder for this process, until it ends in whatever way.

        Raises:
            CommandError: Another process trains in it.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise CommandError(f"{self.path} is in use by another process") from error
        finally:
            os.close(descriptor)


def differences(stored: RunConfig, model: str, given: dict[str, Any]) -> list[str]:
    """Return, in words, each option of ``given`` whose value is not the stored run's."""
    settings = asdict(stored.train)
    settings |= {option_name(name): value for name, value in stored.model_options.items()}
    found = [] if model == stored.model else [f"model is {stored.model}, not {model}"]
    for name, value in given.items():
        if name not in settings:
            found.append(f"--{name.replace('_', '-')} is no option of {stored.model}")
        elif settings[name] != value:
            found.append(f"--{name.replace('_', '-')} is {settings[name]}, not {value}")
    return found
