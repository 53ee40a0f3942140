"""What the command line says in one line instead of a traceback."""

from __future__ import annotations

USAGE_ERROR = 2
FAILURE = 1


class CommandError(Exception):
    """Ends the command with its message on stderr and ``status`` as the exit code.

    Args:
        message: One line.
        status: 2 where the request was wrong, 1 where the work failed.
    """

    def __init__(self, message: str, status: int = USAGE_ERROR) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
