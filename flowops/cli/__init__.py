"""The `flowops` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `flowops` with ``argv``, by default the process's own arguments.

    Returns:
        The exit code: 0; 1 where the work failed; 2 where the request was wrong, with one line on
        stderr and nothing written; 130 after Ctrl-C.
    """
    from flowops.cli.errors import CommandError

    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except CommandError as error:
        sys.stderr.write(f"flowops: {error}\n")
        return error.status
    except KeyboardInterrupt:
        sys.stderr.write(
            "flowops: interrupted; `flowops train --resume` goes on from the last checkpoint\n"
        )
        return _INTERRUPTED


def _dispatch(argv: Sequence[str]) -> int:
    from flowops.cli.console import require_extras
    from flowops.cli.parser import parse_arguments

    arguments = parse_arguments(argv)
    if arguments.verb == "bench":
        from flowops.cli.bench import bench

        return bench(arguments.rest)
    if arguments.verb != "info":
        require_extras()  # before the imports below, which need them
        from flowops.cli.vector_math import resolve_vector_math

        resolve_vector_math()
    if arguments.verb == "train":
        from flowops.cli.train import train

        return train(arguments)
    if arguments.verb == "sample":
        from flowops.cli.sampling import sample

        return sample(arguments)
    if arguments.verb == "evaluate":
        from flowops.cli.evaluate import evaluate

        return evaluate(arguments)
    from flowops.cli.info import info

    return info(arguments)
