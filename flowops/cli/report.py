"""The figures of a run as the commands print them."""

from __future__ import annotations

from collections.abc import Mapping

from flowops.cli.console import say, say_table
from flowops.cli.objectives import Objective
from flowops.data import ImageData


def say_figures(
    objective: Objective,
    data: ImageData,
    title: str,
    figures: Mapping[str, float],
    baselines: Mapping[str, float],
    samples: int = 1,
) -> None:
    """Print the headline of ``figures`` beside the baselines, then the others.

    Args:
        objective: Says what the figures are.
        data: What they were measured on.
        title: Name of the model and its step.
        figures: The headline first, by their keys.
        baselines: In the headline's unit, by name.
        samples: Importance samples an image.
    """
    headline, *others = figures.items()
    say_table(
        f"{data.name}, {objective.unit_name} of {len(data.test):,} held-out images, "
        f"{objective.figure(samples)} (less is better):",
        {title: headline[1], **baselines},
    )
    for name, value in others:
        say(f"{name.replace('_', ' ')}: {value:.4f}")
