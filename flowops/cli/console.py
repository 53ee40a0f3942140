"""What the commands show: a progress bar on stderr, results on stdout, JSON for machines."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Any

from flowops.cli.errors import CommandError

_NEEDED = {
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "PIL": "pillow",
    "matplotlib": "matplotlib",
}


def require_extras() -> None:
    """Refuse to begin work whose end would fail.

    Raises:
        CommandError: A package of the extra ``train`` is missing.
    """
    from importlib.util import find_spec

    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise CommandError(
            f"{', '.join(missing)} not installed; run `pip install 'flowops[train]'`"
        )


class Progress:
    """A progress bar counting images, so that it shows images/s and the time left.

    Args:
        total: Images in all.
        done: Images that an earlier process saw.
        label: Shown before the bar.
        quiet: Show nothing.
    """

    def __init__(self, total: int, *, done: int = 0, label: str = "", quiet: bool = False) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total,
            initial=done,
            desc=label,
            unit=" images",
            unit_scale=True,
            disable=quiet,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.2,
            leave=False,
        )

    def update(self, images: int, **figures: float) -> None:
        """Count ``images`` more; ``figures`` are shown behind the bar."""
        if figures:
            shown = {name.replace("_", " "): f"{value:.3f}" for name, value in figures.items()}
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(images)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


def say(line: str = "") -> None:
    """Write one line to stdout."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say_json(value: dict[str, Any]) -> None:
    """Write one line of JSON to stdout."""
    say(json.dumps(value))


def say_table(title: str, rows: dict[str, float]) -> None:
    """Write ``rows`` as aligned names and figures under ``title``, lowest first."""
    say(title)
    width = max(len(name) for name in rows)
    for name, value in sorted(rows.items(), key=lambda row: row[1]):
        say(f"  {name:<{width}}  {value:8.4f}")
