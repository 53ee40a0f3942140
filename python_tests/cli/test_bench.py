"""`flowops bench` finds the benchmarks of its source tree, or says where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

import flowops
from flowops.cli import main


def test_runs_the_benchmarks_of_the_source_tree(capsys, monkeypatch):
    monkeypatch.setattr(flowops, "__file__", str(Path(__file__).parents[2] / "flowops/__init__.py"))
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0
    assert "--base" in capsys.readouterr().out


def test_without_a_source_tree(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(flowops, "__file__", str(tmp_path / "flowops/__init__.py"))
    assert main(["bench", "--help"]) == 2
    assert "source tree" in capsys.readouterr().err
