"""`flowops evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowops.cli.console import Progress, say_json
from flowops.cli.errors import CommandError
from flowops.cli.images import load_data
from flowops.cli.objectives import objective_of
from flowops.cli.report import say_figures
from flowops.cli.sampling import choose_device, load_run


def evaluate(arguments: argparse.Namespace) -> int:
    """Print the figures of the run ``arguments.run`` on its test split; returns the exit code.

    Raises:
        CommandError: There is no such run, or its data is missing or changed.
    """
    device = choose_device(arguments.device)
    model, config, step = load_run(Path(arguments.run), device)
    data = load_data(config.train, config.model)
    if data.fingerprint() != config.data["sha256"]:
        raise CommandError(f"data of {config.train.data} changed since the run began")
    objective = objective_of(model, data.levels)
    samples = arguments.importance_samples
    if samples > 1 and not objective.has_importance_bound:
        raise CommandError(
            f"--importance-samples needs a model with a likelihood, not {config.model}"
        )
    with Progress(len(data.test), label="evaluating", quiet=arguments.quiet) as progress:
        figures = objective.judge(
            model,
            data.test,
            data.test_labels,
            samples=samples,
            seed=arguments.seed,
            report=progress.update,
        )
    conclusions = objective.conclude(model, data, arguments.seed)
    baselines = objective.baselines(data)
    if arguments.quiet:
        say_json(
            {
                "run": arguments.run,
                "model": config.model,
                "data": data.name,
                "step": step,
                "test_images": len(data.test),
                "bound": objective.figure(samples),
                "importance_samples": samples,
                **{f"test_{name}": value for name, value in figures.items()},
                **conclusions,
                "baselines": baselines,
            }
        )
        return 0
    title = f"{config.title}, after {step} steps"
    say_figures(objective, data, title, figures | conclusions, baselines, samples)
    return 0
