"""MKL's vector functions are resolved before any work (see flowops.cli.vector_math)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flowops import cli
from flowops.cli import vector_math


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate"])
def test_it_comes_before_the_work(verb, monkeypatch, tmp_path):
    resolved = []
    monkeypatch.setattr(vector_math, "resolve_vector_math", lambda: resolved.append(verb))
    arguments = {
        "train": ["train", "realnvp", "--data", str(tmp_path / "absent.npz")],
        "sample": ["sample", "--run", str(tmp_path / "absent")],
        "evaluate": ["evaluate", "--run", str(tmp_path / "absent")],
    }
    assert cli.main(arguments[verb]) == 2
    assert resolved == [verb]


def test_every_function_of_mkl_is_among_them():
    header = Path(torch.__file__).parent / "include/ATen/cpu/vml.h"
    names = re.findall(r"^IMPLEMENT_VML_MKL\((\w+),", header.read_text(), re.MULTILINE)
    assert {function.__name__ for function in vector_math._FUNCTIONS} == set(names)
