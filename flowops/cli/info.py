"""`flowops info`."""

from __future__ import annotations

import argparse

from flowops._library import info as library_info
from flowops.cli.console import say, say_json


def info(arguments: argparse.Namespace) -> int:
    """Print what was built and what this machine can run; returns the exit code."""
    facts = library_info()
    if arguments.quiet:
        say_json(facts)
        return 0
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if isinstance(value, list | tuple):
            value = ", ".join(str(item) for item in value) or "none"
        elif value is None or isinstance(value, bool):
            value = "yes" if value else "no"
        say(f"{name.replace('_', ' '):<{width}}  {value}")
    return 0
