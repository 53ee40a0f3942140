"""The parser of the `flowops` command: options come from dataclass fields, errors are one line."""

from __future__ import annotations

import argparse
import difflib
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from flowops.cli.errors import CommandError
from flowops.cli.run_folder import RunFolder
from flowops.cli.settings import (
    DEFAULT_DATA,
    DEFAULT_MODEL,
    TrainSettings,
    default_options,
    model_fields,
    option_name,
)
from flowops.models import MODELS

VERBS = {
    "train": "train a model on images; without arguments, a small Glow on the digits",
    "sample": "draw images from a trained model into a PNG",
    "evaluate": "figures of a trained model on its whole test split, beside trivial baselines",
    "bench": "time the kernels and models against PyTorch and the packages that are installed",
    "info": "what was built and what this machine can run",
}


class _Group(Protocol):
    """An argument group of argparse, whose class is private."""

    def add_argument(self, *name_or_flags: str, **kwargs: Any) -> argparse.Action: ...


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Return the namespace of ``argv``; ``verb`` is always there.

    For ``train`` the namespace also has ``model`` and, in ``given``, the options that were given;
    for ``bench`` it has ``rest``, which the benchmarks parse themselves.

    Raises:
        CommandError: Something unknown or malformed; exit code 2.
        SystemExit: ``--help`` was asked for.
    """
    parser = _Parser(
        prog="flowops", description="Train and use flows, VAEs and their kin.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(
        dest="verb", metavar="{" + ",".join(VERBS) + "}", parser_class=_Parser
    )
    for verb, text in VERBS.items():
        verbs.add_parser(verb, help=text, description=text, add_help=False)
    if not argv or argv[0] not in VERBS:
        parser.parse_args(argv)
        raise CommandError(f"a verb is needed: {', '.join(VERBS)} (flowops --help)")
    verb, rest = argv[0], list(argv[1:])
    if verb == "train":
        return _parse_train(rest)
    if verb == "bench":
        return argparse.Namespace(verb=verb, rest=rest)
    parser = _verb_parser(verb)
    if verb == "sample":
        _add_run(parser)
        parser.add_argument("--n", type=_positive, default=64, help="images (default: %(default)s)")
        parser.add_argument(
            "--label", type=_natural, metavar="CLASS", help="default: each class in turn"
        )
        parser.add_argument(
            "--temperature", type=_positive_float, help="default: the run's --sample-temperature"
        )
        parser.add_argument(
            "--out", default="samples.png", help="PNG to write (default: %(default)s)"
        )
        parser.add_argument("--seed", type=_natural, default=0, help="default: %(default)s")
    elif verb == "evaluate":
        _add_run(parser)
        parser.add_argument(
            "--importance-samples",
            type=_positive,
            default=1,
            metavar="K",
            help="draws of the noise, or of codes, an image; above 1: importance-weighted bound",
        )
        parser.add_argument("--seed", type=_natural, default=0, help="default: %(default)s")
    return _parse(parser, rest)


def _parse_train(rest: list[str]) -> argparse.Namespace:
    known, remaining = _train_parser(None).parse_known_args(rest)
    model = next((word for word in remaining if word in MODELS), None)
    if model is None:
        if remaining and not remaining[0].startswith("-"):
            raise CommandError(f"model must be one of {', '.join(MODELS)}, got {remaining[0]}")
        model = _model_of(known)
        rest = [model, *rest]
    namespace = _parse(_train_parser(model, getattr(known, "data", DEFAULT_DATA)), rest)
    flags = {"verb", "model", "out", "resume", "quiet"}
    namespace.given = {name: value for name, value in vars(namespace).items() if name not in flags}
    return namespace


def _model_of(known: argparse.Namespace) -> str:
    """Return the model that ``--resume --out DIR`` goes on with, else the default one."""
    folder = RunFolder(Path(known.out)) if known.resume and known.out else None
    return (
        folder.read_config().model if folder is not None and folder.has_config() else DEFAULT_MODEL
    )


def _train_parser(model: str | None, data: str = DEFAULT_DATA) -> _Parser:
    parser = _verb_parser("train", add_help=model is not None)
    parser.add_argument("--out", help="run folder (default: runs/MODEL-DATA)")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, or begin"
    )
    defaults: dict[str, Any] = {}
    if model is not None:
        parser.add_argument("model", choices=list(MODELS), help=f"default: {DEFAULT_MODEL}")
        defaults = default_options(model, data, MODELS[model].config)
    _add_fields(
        parser.add_argument_group("training"), TrainSettings, fields(TrainSettings), str, defaults
    )
    if model is not None:
        config = MODELS[model].config
        _add_fields(
            parser.add_argument_group(f"options of {model}"),
            config,
            model_fields(config),
            option_name,
            defaults,
        )
    return parser


def _verb_parser(verb: str, *, add_help: bool = True) -> _Parser:
    parser = _Parser(
        prog=f"flowops {verb}", description=f"{VERBS[verb]}.", allow_abbrev=False, add_help=add_help
    )
    parser.set_defaults(verb=verb)
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar; one line of JSON as the result"
    )
    return parser


def _parse(parser: _Parser, rest: Sequence[str]) -> argparse.Namespace:
    namespace, unknown = parser.parse_known_args(rest)
    if unknown:
        word = unknown[0]
        options = [name for action in parser._actions for name in action.option_strings]
        close = difflib.get_close_matches(word.split("=")[0], options, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise CommandError(f"{parser.prog}: unknown argument {word}{hint}")
    return namespace


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="folder that `flowops train` made"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s"
    )


def _add_fields(
    group: _Group,
    config: type,
    entries: Sequence[Field[Any]],
    naming: Callable[[str], str],
    defaults: dict[str, Any],
) -> None:
    """Add one option a field; what is not given stays out of the namespace."""
    hints = typing.get_type_hints(config)
    for entry in entries:
        name = naming(entry.name)
        shown = f"{entry.metadata['help']} (default: {defaults.get(name)})"
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            default=argparse.SUPPRESS,
            help=shown.replace("%", "%%"),
            **_argument_type(entry, hints[entry.name]),
        )


def _argument_type(entry: Field[Any], hint: Any) -> dict[str, Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is Literal:
        return {"choices": list(typing.get_args(hint))}
    if entry.metadata.get("choices"):
        return {"choices": list(entry.metadata["choices"])}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    metavar = {int: "N", float: "X"}.get(hint, entry.name.upper())
    return {"type": hint, "metavar": metavar}


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _natural(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text}") from error


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text}") from error
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value
