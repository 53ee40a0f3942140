"""The pictures of a run beside its samples: what a model makes of images and of codes."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowops.cli.files import write_atomically
from flowops.cli.noise import SAMPLES, stream_seed
from flowops.cli.objectives import Objective
from flowops.cli.plots import write_grid
from flowops.data import ImageData
from flowops.models import ClusterVAE, ImageModel

#: Images of a row, rows of a sheet.
_COLUMNS = 10
_ROWS = 8
_TEMPERATURES = (0.25, 0.5, 0.7, 0.85, 1.0)
_SCATTERED = 5000
_SEARCHED = 10_000


class Pictures:
    """Draws a model of images into PNG files of one folder.

    Args:
        model: In evaluation mode.
        objective: Turns pixels into the model's images and back.
        data: Whose test images are shown.
        folder: Where the files go.
        seed: Of the noise.
    """

    def __init__(
        self, model: ImageModel, objective: Objective, data: ImageData, folder: Path, seed: int
    ) -> None:
        self.model = model
        self.objective = objective
        self.data = data
        self.folder = folder
        self.source = torch.Generator(model.device).manual_seed(stream_seed(seed, SAMPLES, 1))
        self.noise = torch.Generator().manual_seed(stream_seed(seed, SAMPLES, 2))

    @torch.no_grad()
    def draw(self) -> None:
        """Write every picture that this kind of model has."""
        self.scatter()
        if not self.objective.makes_images:
            self.neighbours(self.folder / "neighbours.png", _ROWS)
            return
        self.reconstructions()
        self.interpolation()
        self.arcs()
        self.traversal()
        self.temperatures()
        if isinstance(self.model, ClusterVAE):
            self.clusters(self.model.config.clusters)

    def reconstructions(self) -> None:
        """Rows of test images, each above its reconstructions."""
        x, labels = self._test(_ROWS // 2 * _COLUMNS)
        columns = min(_COLUMNS, len(x))
        whole = len(x) // columns * columns
        pairs = torch.stack([x, self.model.reconstruct(x, labels)])[:, :whole]
        rows = pairs.unflatten(1, (-1, columns)).transpose(0, 1)
        self._sheet("reconstructions", rows.flatten(0, 2), columns)

    def interpolation(self) -> None:
        """Rows from one test image's code to another's, along a line."""
        x, labels = self._test(2 * _ROWS)
        codes = self.model.encode(x, labels)
        rows = len(codes) // 2
        if rows == 0:
            return
        first, last = codes[:rows, None], codes[rows : 2 * rows, None]
        part = torch.linspace(0, 1, _COLUMNS, device=codes.device, dtype=codes.dtype)[:, None]
        self._decoded("interpolation", first + (last - first) * part, labels, _COLUMNS)

    def arcs(self) -> None:
        """Rows of codes z1 cos t + z2 sin t, each as probable as the codes of the prior are."""
        labels = self._cycled_labels(_ROWS)
        ends = [self.model.sample_codes(_ROWS, labels, 1.0, self.source)[:, None] for _ in "ab"]
        t = torch.linspace(0, math.pi / 2, _COLUMNS, device=ends[0].device, dtype=ends[0].dtype)
        t = t[:, None]
        self._decoded("arcs", ends[0] * t.cos() + ends[1] * t.sin(), labels, _COLUMNS)

    def traversal(self) -> None:
        """A row a number of the code, the others those of one test image: the widest numbers."""
        x, labels = self._test(500)
        codes = self.model.encode(x, labels)
        spread = codes.std(0)
        widest = spread.topk(min(_ROWS, codes.size(1))).indices
        steps = torch.linspace(-3, 3, _COLUMNS, device=codes.device, dtype=codes.dtype)
        rows = codes[:1].repeat(len(widest), _COLUMNS, 1)
        for row, place in zip(rows, widest, strict=True):
            row[:, place] = codes[:, place].mean() + steps * spread[place]
        first = None if labels is None else labels[:1].expand(len(widest))
        self._decoded("traversal", rows, first, _COLUMNS)

    def temperatures(self) -> None:
        """A row of samples for each of several temperatures, from cold to 1."""
        labels = self._cycled_labels(_COLUMNS)
        rows = [
            self.model.for_sampling(value, self.source).sample(
                (_COLUMNS,), labels, temperature=value, generator=self.source
            )
            for value in _TEMPERATURES
        ]
        self._sheet("temperatures", torch.cat(rows), _COLUMNS)

    def clusters(self, count: int) -> None:
        """A row of samples for each cluster."""
        labels = torch.arange(count, device=self.model.device).repeat_interleave(_COLUMNS)
        images = self.model.sample((len(labels),), labels, generator=self.source)
        self._sheet("clusters", images, _COLUMNS)

    def scatter(self) -> None:
        """Codes of test images in the plane: the two numbers, or the two widest directions."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        x, labels = self._test(_SCATTERED)
        codes = self.model.encode(x, labels).double()
        if codes.size(1) > 2:
            codes = codes - codes.mean(0)
            codes = codes @ torch.linalg.eigh(codes.T @ codes).eigenvectors[:, [-1, -2]]
        if codes.size(1) < 2:
            return
        known = self.data.test_labels
        colours = {} if known is None else {"c": known[: len(codes)], "cmap": "tab10"}
        figure = Figure(figsize=(6, 6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        points = axes.scatter(*codes.T.cpu().numpy(), s=3, **colours)
        if colours:
            figure.colorbar(points, ax=axes, label="class")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(f"codes of {len(codes):,} test images")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        write_atomically(self.folder / "codes.png", buffer.getvalue())

    def neighbours(self, path: Path, rows: int) -> None:
        """Rows of test images, each before the test images of the nearest codes."""
        codes = self._codes(self.data.test[:_SEARCHED])
        asked = torch.randperm(len(codes), generator=self.noise)[:rows].to(codes.device)
        distance = torch.cdist(codes[asked], codes)
        distance[torch.arange(len(asked)), asked] = -1.0
        count = min(_COLUMNS, len(codes))
        nearest = distance.topk(count, largest=False).indices.cpu()
        write_grid(self.data.test[nearest.flatten().numpy()], self.data.levels, path, columns=count)

    def _codes(self, images: NDArray[np.uint8]) -> Tensor:
        parts = [images[n : n + 500] for n in range(0, len(images), 500)]
        return torch.cat([self.model.encode(self._images(part)) for part in parts])

    def _images(self, pixels: NDArray[np.uint8]) -> Tensor:
        x = self.objective.prepare(torch.from_numpy(pixels), self.model.dtype, self.noise)
        return x.to(self.model.device)

    def _test(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Return up to ``count`` test images and, for a model with a condition, their labels."""
        x = self._images(self.data.test[:count])
        if self.model.labels != "condition" or self.data.test_labels is None:
            return x, None
        return x, torch.from_numpy(self.data.test_labels[:count]).to(x.device)

    def _cycled_labels(self, count: int) -> Tensor | None:
        if self.model.labels != "condition":
            return None
        return torch.arange(count, device=self.model.device) % self.data.classes

    def _decoded(self, name: str, codes: Tensor, labels: Tensor | None, columns: int) -> None:
        """Write the images of ``codes``, ``(rows, columns, features)``; a label a row."""
        rows = len(codes)
        flat = None if labels is None else labels[:rows].repeat_interleave(columns)
        self._sheet(name, self.model.decode(codes.flatten(0, 1), flat), columns)

    def _sheet(self, name: str, images: Tensor, columns: int) -> None:
        pixels = self.objective.to_pixels(images.clamp(0, 1))
        write_grid(pixels, self.data.levels, self.folder / f"{name}.png", columns=columns)
