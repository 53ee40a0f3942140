"""`flowops train`."""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch

import flowops
from flowops.cli.checkpoint import Checkpoint
from flowops.cli.console import Progress, say, say_json
from flowops.cli.errors import CommandError
from flowops.cli.images import load_data
from flowops.cli.objectives import Objective, objective_of
from flowops.cli.pictures import Pictures
from flowops.cli.plots import write_curve
from flowops.cli.report import say_figures
from flowops.cli.run_folder import RunFolder, differences
from flowops.cli.sampling import choose_device, draw_grid
from flowops.cli.settings import (
    DEFAULT_DATA,
    RunConfig,
    TrainSettings,
    default_options,
    split_options,
)
from flowops.cli.trainer import Trainer, build_model
from flowops.data import ImageData
from flowops.models import MODELS, ImageModel


def train(arguments: argparse.Namespace) -> int:
    """Train as ``arguments`` of :func:`~flowops.cli.parser.parse_arguments` say.

    Returns:
        The exit code, 0.

    Raises:
        CommandError: A wrong request (2), before anything is written; or a failure of the work (1).
    """
    started = time.monotonic()
    folder = RunFolder(run_path(arguments))
    stored = folder.read_config() if arguments.resume and folder.has_config() else None
    if stored is None:
        folder.refuse_if_used()
        settings, model_options = _resolve(arguments)
    else:
        _refuse_other_settings(stored, arguments, folder)
        settings, model_options = stored.train, stored.model_options
        torch.set_num_threads(stored.environment["threads"])
    if stored is None and settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    data = load_data(settings, arguments.model)
    config = stored or _new_config(arguments, settings, model_options, data)
    _check_data(config, data)
    model = build_model(config, device)
    _check_batches(config, data, objective_of(model, data.levels))
    if stored is None:
        folder.create(config)
    with folder.locked():
        trainer = Trainer(config, data, model, folder, device, quiet=arguments.quiet)
        if folder.has_checkpoint():
            trainer.restore(Checkpoint.load(folder.path))
        else:
            folder.metrics.cut_after(0)
            trainer.begin()
        if not arguments.quiet:
            _announce(trainer)
        trainer.run()
        _conclude(trainer, time.monotonic() - started)
    return 0


def run_path(arguments: argparse.Namespace) -> Path:
    """Return the run folder: ``--out``, or ``runs/MODEL-DATA``."""
    if arguments.out:
        return Path(arguments.out)
    data = Path(arguments.given.get("data", DEFAULT_DATA)).name
    return Path("runs") / f"{arguments.model}-{data}"


def _resolve(arguments: argparse.Namespace) -> tuple[TrainSettings, dict[str, Any]]:
    source = arguments.given.get("data", DEFAULT_DATA)
    options = (
        default_options(arguments.model, source, MODELS[arguments.model].config) | arguments.given
    )
    if Path(options["data"]).exists():
        options["data"] = str(Path(options["data"]).resolve())
    config = MODELS[arguments.model].config
    if options["class_conditional"] and "classes" not in config.__dataclass_fields__:
        raise CommandError(f"--class-conditional needs glow, got {arguments.model}")
    return split_options(options, config)


def _refuse_other_settings(
    stored: RunConfig, arguments: argparse.Namespace, folder: RunFolder
) -> None:
    given = dict(arguments.given)
    if Path(given.get("data", "")).exists() and "data" in given:
        given["data"] = str(Path(given["data"]).resolve())
    found = differences(stored, arguments.model, given)
    if found:
        raise CommandError(f"--resume keeps the settings of {folder.path}: {'; '.join(found)}")


def _new_config(
    arguments: argparse.Namespace,
    settings: TrainSettings,
    model_options: dict[str, Any],
    data: ImageData,
) -> RunConfig:
    source = arguments.given.get("data", DEFAULT_DATA)
    defaults = default_options(arguments.model, source, MODELS[arguments.model].config)
    defaults["data"] = DEFAULT_DATA
    known = {"classes": data.classes, "values": data.levels}
    told = MODELS[arguments.model].config.__dataclass_fields__.keys() & known.keys()
    return RunConfig(
        model=arguments.model,
        event_shape=data.event_shape,
        model_options=model_options | {name: known[name] for name in told if known[name]},
        train=settings,
        data={
            "name": data.name,
            "levels": data.levels,
            "train_images": len(data.train),
            "test_images": len(data.test),
            "split": data.split,
            "sha256": data.fingerprint(),
        },
        non_default=sorted(
            name for name, value in arguments.given.items() if defaults[name] != value
        ),
        environment={
            "flowops": flowops.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
    )


def _check_data(config: RunConfig, data: ImageData) -> None:
    if data.fingerprint() != config.data["sha256"]:
        raise CommandError(
            f"data of {config.train.data} changed since the run began; train into another --out"
        )
    if config.train.batch_size > len(data.train):
        raise CommandError(
            f"--batch-size must be at most the {len(data.train)} training images, "
            f"got {config.train.batch_size}"
        )


def _check_batches(config: RunConfig, data: ImageData, objective: Objective) -> None:
    least = objective.least_batch
    if min(config.train.batch_size, len(data.test)) < least:
        raise CommandError(
            f"{config.model} needs at least {least} images in a batch and in the test split, "
            f"got --batch-size {config.train.batch_size} and {len(data.test)}"
        )


def _announce(trainer: Trainer) -> None:
    config, data = trainer.config, trainer.data
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    shape = "x".join(str(size) for size in data.event_shape)
    say(
        f"{config.title}, {parameters:,} parameters, on {trainer.device}; "
        f"run folder {trainer.folder.path}"
    )
    say(f"{data.name}: {len(data.train):,} images of {shape}, {data.levels} levels; {data.split}")
    if trainer.step:
        say(f"resuming after step {trainer.step} of {config.train.steps}")


def _conclude(trainer: Trainer, seconds: float) -> None:
    """Evaluate on the whole test split, draw the pictures, print the figures."""
    config, folder, data = trainer.config, trainer.folder, trainer.data
    with Progress(len(data.test), label="evaluating", quiet=trainer.quiet) as progress:
        figures = trainer.judge(report=progress.update)
    objective = trainer.objective
    conclusions = objective.conclude(trainer.judged.eval(), data, config.train.seed)
    baselines = objective.baselines(data)
    held_out = {f"test_{name}": value for name, value in figures.items()} | conclusions
    folder.metrics.append({"step": trainer.step, "final": True, **held_out, "baselines": baselines})
    model = trainer.judged
    if objective.makes_images:
        draw_grid(
            model,
            objective,
            config,
            folder.samples,
            count=config.train.sample_count,
            temperature=config.train.sample_temperature,
            seed=config.train.seed,
        )
    if isinstance(model, ImageModel):
        Pictures(model, objective, data, folder.path, config.train.seed).draw()
    title = f"{config.title} on {data.name}"
    rows = list(folder.metrics.rows())
    write_curve(rows, (objective.unit, objective.unit_name), baselines, title, folder.curve)
    if trainer.quiet:
        say_json(
            {
                "run": str(folder.path),
                "model": config.model,
                "data": data.name,
                "step": trainer.step,
                "seconds": round(seconds, 1),
                **held_out,
                "baselines": baselines,
            }
        )
        return
    title = f"{config.title}, after {trainer.step} steps"
    say_figures(objective, data, title, figures | conclusions, baselines)
    say(f"{seconds:.0f} s; pictures and learning curve in {folder.path}")
