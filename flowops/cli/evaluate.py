"""`flowops evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowops.cli.baselines import trivial_baselines
from flowops.cli.console import Progress, say_json, say_table
from flowops.cli.errors import CommandError
from flowops.cli.evaluation import held_out_bits
from flowops.cli.sampling import choose_device, load_run
from flowops.cli.train import load_data


def evaluate(arguments: argparse.Namespace) -> int:
    """Print bits/dim of the run ``arguments.run`` on its whole test split; returns the exit code.

    Raises:
        CommandError: There is no such run, or its data is missing or changed.
    """
    device = choose_device(arguments.device)
    model, config, step = load_run(Path(arguments.run), device)
    data = load_data(config.train)
    if data.fingerprint() != config.data["sha256"]:
        raise CommandError(f"data of {config.train.data} changed since the run began")
    samples = arguments.importance_samples
    with Progress(len(data.test), label="evaluating", quiet=arguments.quiet) as progress:
        bits = held_out_bits(
            model,
            data.test,
            data.levels,
            labels=data.test_labels,
            importance_samples=samples,
            seed=arguments.seed,
            report=progress.update,
        )
    baselines = trivial_baselines(data)
    bound = (
        "uniform-dequantisation bound"
        if samples == 1
        else f"importance-weighted bound, {samples} samples"
    )
    if arguments.quiet:
        say_json(
            {
                "run": arguments.run,
                "model": config.model,
                "data": data.name,
                "step": step,
                "test_images": len(data.test),
                "bound": bound,
                "importance_samples": samples,
                "test_bits_per_dim": bits,
                "baselines": baselines,
            }
        )
        return 0
    table = {f"{config.title}, after {step} steps ({bound})": bits} | baselines
    say_table(
        f"{data.name}, bits/dim of {len(data.test):,} held-out images (lower is better):", table
    )
    return 0
