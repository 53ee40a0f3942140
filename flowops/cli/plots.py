"""The two pictures of a run: a grid of images and the learning curve."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowops.cli.files import write_atomically

_SHOWN_PIXELS = 48


def write_grid(
    images: NDArray[np.uint8], levels: int, path: Path, *, columns: int | None = None
) -> None:
    """Write ``images`` as a PNG grid of so many columns, by default a nearly square one.

    They are ``(n, channels, height, width)`` with values in ``[0, levels)``; small ones are
    enlarged by a whole factor, so that pixels stay squares.
    """
    from PIL import Image

    count, channels, height, width = images.shape
    grey = (images.astype(np.float64) * (255 / (levels - 1))).round().astype(np.uint8)
    if channels not in (1, 3):
        grey, channels = grey[:, :1], 1
    zoom = max(1, round(_SHOWN_PIXELS / max(height, width)))
    grey = grey.repeat(zoom, axis=2).repeat(zoom, axis=3)
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = 2
    cell = (height * zoom + gap, width * zoom + gap)
    sheet = np.full((rows * cell[0] + gap, columns * cell[1] + gap, channels), 127, dtype=np.uint8)
    for index, image in enumerate(grey):
        top = gap + index // columns * cell[0]
        left = gap + index % columns * cell[1]
        sheet[top : top + height * zoom, left : left + width * zoom] = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def write_curve(
    rows: Sequence[Mapping[str, Any]],
    unit: tuple[str, str],
    baselines: Mapping[str, float],
    title: str,
    path: Path,
) -> None:
    """Write the training and held-out figure over steps as a PNG, the baselines as dashed lines.

    ``unit`` is the figure's key in ``rows``, after ``train_`` and ``test_``, and its name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown: list[float] = []
    for key, label in (
        (f"train_{unit[0]}", "training batches"),
        (f"test_{unit[0]}", "held out"),
    ):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
            shown += [value for _, value in points]
    for index, (name, value) in enumerate(baselines.items()):
        axes.axhline(
            value, linestyle="--", linewidth=0.8, color=f"C{index + 2}", label=f"{name} (held out)"
        )
    if shown:
        # The first steps would squeeze the rest of the curve into a line.
        low = min([*shown, *baselines.values()])
        high = max([*baselines.values(), np.quantile(shown, 0.8)])
        axes.set_ylim(low - 0.03 * (high - low), high + 0.1 * (high - low))
    axes.set(xlabel="optimiser step", ylabel=unit[1], title=title)
    axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
