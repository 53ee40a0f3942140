"""Files that are whole or absent: a kill, a crash or a full disk leaves the previous version."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowops.cli.errors import FAILURE, CommandError

TEMPORARY_PREFIX = ".flowops-tmp-"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` or leave it as it is.

    The bytes go to a temporary file of the same folder and to the disk before the name changes
    hands, and the folder is synchronised after.

    Raises:
        CommandError: The system refused, for example because the disk is full; exit code 1.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _synchronise_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "; the previous one is intact" if path.exists() else ""
        raise CommandError(
            f"cannot write {path}: {error.strerror or error}{kept}", FAILURE
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


class JsonLines:
    """A file of one JSON object a line that can be cut back to an earlier step.

    Args:
        path: The file; made when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Add one row.

        Raises:
            CommandError: The system refused; exit code 1.
        """
        line = (json.dumps(row) + "\n").encode()
        try:
            with self.path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise CommandError(
                f"cannot write {self.path}: {error.strerror or error}; "
                "the last checkpoint is intact",
                FAILURE,
            ) from error

    def synchronise(self) -> None:
        """Have all rows on the disk before returning."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows; a last line that a kill cut short is left out."""
        if not self.path.exists():
            return
        for line in self.path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                with contextlib.suppress(json.JSONDecodeError):
                    yield json.loads(line)

    def cut_after(self, step: int) -> None:
        """Keep the rows of steps up to ``step`` that are not a final result."""
        kept = [row for row in self.rows() if row["step"] <= step and not row.get("final")]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _synchronise_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
