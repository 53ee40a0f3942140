"""What the pictures of a run show, by the images that reach the PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowops.cli import pictures
from flowops.cli.noise import SAMPLES, stream_seed
from flowops.cli.objectives import objective_of
from flowops.cli.pictures import Pictures
from flowops.data import ImageData
from flowops.models import AE, CVAE, AEConfig, ClusterVAE, ClusterVAEConfig, CVAEConfig, ImageModel

LEVELS = 17
SHAPE = (1, 2, 3)
Draw = Callable[[ImageModel], dict[str, Tensor]]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Draw:
    """Draw a model and return each sheet's images, ``(rows, columns, *SHAPE)``."""
    sheets: dict[str, Tensor] = {}

    def keep(self: Pictures, name: str, images: Tensor, columns: int) -> None:
        sheets[name] = images.unflatten(0, (-1, columns))

    monkeypatch.setattr(Pictures, "_sheet", keep)

    def drawn(model: ImageModel) -> dict[str, Tensor]:
        test = np.random.default_rng(0).integers(0, LEVELS, (64, *SHAPE)).astype(np.uint8)
        labels = np.arange(64) % 3
        data = ImageData("toy", test, test, LEVELS, "as given", labels, labels)
        Pictures(model.eval(), objective_of(model, LEVELS), data, tmp_path, 0).draw()
        return sheets | {"test": torch.from_numpy(test).double() / (LEVELS - 1)}

    return drawn


def auto_encoder() -> AE:
    torch.manual_seed(0)
    model = AE(AEConfig(SHAPE, latent=4, hidden=8)).double()
    model.moments.update(torch.randn(50, 4, dtype=torch.float64))
    return model


def test_reconstructions_stand_below_their_images(draw: Draw) -> None:
    model = auto_encoder()
    sheets = draw(model)
    rows, x = sheets["reconstructions"], sheets["test"]
    assert rows.shape == (8, 10, *SHAPE)
    torch.testing.assert_close(rows[0], x[:10])
    torch.testing.assert_close(rows[1], model.reconstruct(x[:10]))
    torch.testing.assert_close(rows[7], model.reconstruct(x[30:40]))


def test_interpolations_run_from_one_image_to_another(draw: Draw) -> None:
    model = auto_encoder()
    sheets = draw(model)
    rows, codes = sheets["interpolation"], model.encode(sheets["test"])
    assert rows.shape == (8, 10, *SHAPE)
    torch.testing.assert_close(rows[:, 0], model.decode(codes[:8]))
    torch.testing.assert_close(rows[:, -1], model.decode(codes[8:16]))
    torch.testing.assert_close(rows[2, 3], model.decode((2 * codes[2:3] + codes[10:11]) / 3)[0])


def test_arcs_join_codes_of_the_prior(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    model = auto_encoder()
    drawn: list[Tensor] = []
    sample_codes = model.sample_codes

    def recorded(*arguments: Any) -> Tensor:
        drawn.append(sample_codes(*arguments))
        return drawn[-1]

    monkeypatch.setattr(model, "sample_codes", recorded)
    rows = draw(model)["arcs"]
    first, last = drawn[0][:, None], drawn[1][:, None]
    t = torch.linspace(0, math.pi / 2, 10, dtype=torch.float64)[:, None]
    codes = first * t.cos() + last * t.sin()
    expected = model.decode(codes.flatten(0, 1)).view(8, 10, *SHAPE)
    torch.testing.assert_close(rows, expected.detach())


def test_a_traversal_moves_one_number_of_a_code(draw: Draw) -> None:
    model = auto_encoder()
    sheets = draw(model)
    rows, codes = sheets["traversal"], model.encode(sheets["test"])
    widest = codes.std(0).argmax()
    moved = codes[:1].repeat(10, 1)
    moved[:, widest] = codes[:, widest].mean() + codes[:, widest].std() * torch.linspace(-3, 3, 10)
    assert rows.shape == (4, 10, *SHAPE)
    torch.testing.assert_close(rows[0], model.decode(moved))


def test_a_row_a_temperature(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    model = auto_encoder()

    def told(shape: tuple[int], labels: None, *, temperature: float, generator: object) -> Tensor:
        return torch.full((*shape, *SHAPE), temperature)

    monkeypatch.setattr(model, "sample", told)
    rows = draw(model)["temperatures"]
    expected = torch.tensor([0.25, 0.5, 0.7, 0.85, 1.0]).view(5, 1, 1, 1, 1)
    assert torch.equal(rows, expected.expand(5, 10, *SHAPE))


def test_a_row_a_cluster(draw: Draw) -> None:
    torch.manual_seed(1)
    config = ClusterVAEConfig(SHAPE, clusters=3, latent=2, channels=2, hidden=4)
    model = ClusterVAE(config).double()
    with torch.no_grad():
        model.means.copy_(torch.tensor([[-60.0, 0.0], [0.0, 60.0], [60.0, 60.0]]))
    rows = draw(model)["clusters"]
    assert rows.shape == (3, 10, *SHAPE)
    near = (rows.mean(1)[:, None] - model.decode(model.means).detach()).abs().flatten(2).mean(2)
    assert torch.equal(near.argmin(1), torch.arange(3))


def test_a_condition_reaches_every_picture(draw: Draw) -> None:
    torch.manual_seed(2)
    model = CVAE(CVAEConfig(SHAPE, latent=2, hidden=4, classes=3)).double()
    seen: list[Tensor | None] = []
    original = model.prior_mean
    model.prior_mean = lambda labels: (seen.append(labels), original(labels))[1]  # type: ignore[method-assign]
    sheets = draw(model)
    assert {"temperatures", "arcs"} <= sheets.keys()
    assert all(labels is not None for labels in seen)


@pytest.mark.parametrize("error", [0.0, 10.0])
def test_neighbours_begin_with_the_image_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: float
) -> None:
    model = auto_encoder()
    found: list[np.ndarray] = []
    keep = lambda images, levels, path, *, columns: found.append(images.reshape(-1, columns, 6))  # noqa: E731
    monkeypatch.setattr(pictures, "write_grid", keep)
    cdist = torch.cdist  # an image need not be at distance 0 from itself, by rounding
    rounding = lambda a, b: error * torch.rand(len(a), len(b))  # noqa: E731
    monkeypatch.setattr(torch, "cdist", lambda a, b: cdist(a, b) + rounding(a, b))
    test = np.random.default_rng(0).integers(0, 5, (40, *SHAPE)).astype(np.uint8)
    data = ImageData("toy", test, test, 5, "as given")
    with torch.no_grad():
        shown = Pictures(model.eval(), objective_of(model, 5), data, tmp_path, 0)
        shown.neighbours(tmp_path / "n.png", 6)
        codes = model.encode(torch.from_numpy(test).double() / 4)
    rows = found[0]
    assert rows.shape == (6, 10, 6)
    source = torch.Generator().manual_seed(stream_seed(0, SAMPLES, 2))
    asked = torch.randperm(40, generator=source)[:6]
    flat = test.reshape(40, 6)
    assert np.array_equal(rows[:, 0], flat[asked.numpy()])
    for row in rows if error == 0 else []:
        places = [int(np.flatnonzero((flat == image).all(1))[0]) for image in row]
        distances = (codes[places] - codes[places[0]]).norm(dim=1)
        assert (distances.diff() >= -1e-9).all()


def test_codes_are_scattered_into_a_picture(draw: Draw, tmp_path: Path) -> None:
    draw(auto_encoder())
    with Image.open(tmp_path / "codes.png") as image:
        assert min(image.size) > 400
