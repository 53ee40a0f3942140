"""The parts of the command line that stand alone: files, order of the data, diagnosis, parser."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from flowops.cli.diagnosis import first_non_finite_layer, first_non_finite_parameter
from flowops.cli.errors import CommandError
from flowops.cli.files import JsonLines, write_atomically
from flowops.cli.noise import BatchOrder, generator
from flowops.cli.parser import parse_arguments
from flowops.cli.settings import TrainSettings, model_fields, option_name
from flowops.models import MODELS, build


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(CommandError, match="No space left on device; the previous one is intact"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_lines_cut_back_to_a_step(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        lines.append({"step": step})
    lines.append({"step": 3, "final": True})
    lines.cut_after(3)
    assert [row["step"] for row in lines.rows()] == [1, 2, 3]
    lines.cut_after(1)
    assert list(lines.rows()) == [{"step": 1}]


def test_order_visits_each_image_once_an_epoch():
    order = BatchOrder(10, 3, seed=1)
    epochs = [[order.batch(3 * epoch + step) for step in range(3)] for epoch in range(2)]
    for batches in epochs:
        assert torch.cat(batches).unique().numel() == 9
    assert not torch.equal(epochs[0][0], epochs[1][0])
    # A process that starts in the second epoch sees what one that came through the first saw.
    assert torch.equal(BatchOrder(10, 3, seed=1).batch(4), epochs[1][1])


def test_streams_differ_by_seed_purpose_and_index():
    draws = {
        torch.rand(1, generator=generator(*key)).item()
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(draws) == 4
    assert torch.equal(
        torch.rand(5, generator=generator(3, 1, 4)), torch.rand(5, generator=generator(3, 1, 4))
    )


def small_glow() -> nn.Module:
    return build("glow", (1, 4, 4), levels=2, steps=2, hidden=4)


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("transform.levels.0.layers.4.conditioner.first.weight", "first (ActNormConv2d)"),
        ("transform.levels.0.layers.5.log_scale", "layers.5 (ActNorm)"),
        ("transform.levels.0.layers.6.log_s", "layers.6 (InvertibleConv1x1)"),
        ("transform.levels.1.layers.2.lower", "layers.2 (InvertibleConv1x1)"),
        ("transform.splits.0", "transform.splits.0"),
    ],
)
def test_diagnosis_blames_the_layer(parameter, layer):
    model = small_glow()
    x = torch.rand(4, 1, 4, 4)
    model.initialize(x)
    assert first_non_finite_layer(model, lambda: model.log_prob(x)) is None
    name, value = next(
        (name, value) for name, value in model.named_parameters() if name.startswith(parameter)
    )
    value.data.fill_(float("nan"))
    found = first_non_finite_layer(model, lambda: model.log_prob(x))
    assert found is not None
    assert layer in found
    assert "gave nan" in found
    assert first_non_finite_parameter(model) == name


def test_diagnosis_leaves_no_hooks():
    model = small_glow()
    first_non_finite_layer(model, lambda: model.log_prob(torch.full((1, 1, 4, 4), torch.nan)))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("model", MODELS)
def test_every_model_field_is_an_option(model, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["train", model, "--help"])
    text = capsys.readouterr().out
    for entry in model_fields(MODELS[model].config):
        assert "--" + option_name(entry.name).replace("_", "-") in text
    for name in TrainSettings.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in text


def test_model_may_come_last():
    arguments = parse_arguments(["train", "--lr", "0.1", "--couplings", "2", "nice"])
    assert arguments.model == "nice"
    assert arguments.given == {"lr": 0.1, "couplings": 2}
