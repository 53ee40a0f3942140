"""`flowops sample`, and what it shares with training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch

from flowops.cli.checkpoint import Checkpoint, load_weights
from flowops.cli.console import say, say_json
from flowops.cli.errors import CommandError
from flowops.cli.images import load_data
from flowops.cli.noise import SAMPLES, stream_seed
from flowops.cli.objectives import Objective, objective_of
from flowops.cli.pictures import Pictures
from flowops.cli.plots import write_grid
from flowops.cli.run_folder import RunFolder
from flowops.cli.settings import RunConfig
from flowops.cli.trainer import build_model
from flowops.distributions import Flow
from flowops.models import ImageModel

_EMA_PREFIX = "module."


def sample(arguments: argparse.Namespace) -> int:
    """Draw images from the run ``arguments.run`` into a PNG; returns the exit code.

    Raises:
        CommandError: There is no such run, or the PNG cannot be written.
    """
    out = Path(arguments.out)
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise CommandError(f"--out must be a .png file in an existing folder, got {out}")
    model, config, step = load_run(Path(arguments.run), choose_device(arguments.device))
    objective = objective_of(model, config.data["levels"])
    if not objective.makes_images:
        return _show_neighbours(model, objective, config, arguments)
    temperature = arguments.temperature or config.train.sample_temperature
    label = arguments.label
    if label is not None and label >= config.classes:
        raise CommandError(f"--label must be below the run's {config.classes} classes, got {label}")
    draw_grid(
        model,
        objective,
        config,
        out,
        count=arguments.n,
        temperature=temperature,
        seed=arguments.seed,
        label=label,
    )
    if arguments.quiet:
        say_json({"out": str(out), "n": arguments.n, "temperature": temperature, "step": step})
    else:
        say(
            f"{arguments.n} samples of {config.model} after {step} steps, "
            f"temperature {temperature}: {out}"
        )
    return 0


def _show_neighbours(
    model: Flow | ImageModel, objective: Objective, config: RunConfig, arguments: argparse.Namespace
) -> int:
    """Show test images with those of the nearest codes: what a model without images has to show."""
    if arguments.label is not None or arguments.temperature is not None:
        raise CommandError(
            f"--label and --temperature need a model that makes images, got {config.model}"
        )
    data = load_data(config.train, config.model)
    out = Path(arguments.out)
    pictures = Pictures(cast("ImageModel", model), objective, data, out.parent, arguments.seed)
    pictures.neighbours(out, arguments.n)
    if arguments.quiet:
        say_json({"out": str(out), "n": arguments.n})
    else:
        say(f"{arguments.n} test images, each before those of the nearest codes: {out}")
    return 0


def choose_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` means here.

    Raises:
        CommandError: ``cuda`` was asked for and torch has none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda needs a GPU that torch can use; this torch sees none")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def load_run(path: Path, device: torch.device) -> tuple[Flow | ImageModel, RunConfig, int]:
    """Return the trained model of a run folder in evaluation mode, its config and its step.

    Raises:
        CommandError: The folder holds no run or no checkpoint.
    """
    if not path.is_dir():
        raise CommandError(f"--run {path} is no folder; `flowops train` makes one")
    config = RunFolder(path).read_config()
    checkpoint = Checkpoint.load(path)
    model = build_model(config, device)
    averaged = {
        name[len(_EMA_PREFIX) :]: value
        for name, value in checkpoint.ema.items()
        if name.startswith(_EMA_PREFIX)
    }
    load_weights(model, averaged or checkpoint.model, path)
    return model.eval(), config, checkpoint.step


@torch.no_grad()
def draw_grid(
    model: Flow | ImageModel,
    objective: Objective,
    config: RunConfig,
    path: Path,
    *,
    count: int,
    temperature: float,
    seed: int,
    label: int | None = None,
) -> None:
    """Write ``count`` samples at ``temperature`` to ``path``, all of class ``label`` if given."""
    if count == 0:
        return
    was_training = model.training
    model.eval()
    source = torch.Generator(model.device).manual_seed(stream_seed(seed, SAMPLES))
    classes = None
    if config.classes:
        turns = torch.arange(count, device=model.device) % config.classes
        classes = turns if label is None else torch.full_like(turns, label)
    sampler = model.for_sampling(temperature, source) if isinstance(model, ImageModel) else model
    images = sampler.sample((count,), classes, temperature=temperature, generator=source)
    model.train(was_training)
    write_grid(objective.to_pixels(images), objective.levels, path)
