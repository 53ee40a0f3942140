""".ci/sass_report.py counts what a dump of machine code holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_CI = Path(__file__).parents[1] / ".ci"
_DUMP = """
\tcode for sm_90
\t\tFunction : _ZN7flowops9transformIfEEvPKfPf
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
                                                               /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R6.64] ;
        /*0020*/              @!P0 LDG.E.U16.CONSTANT R3, desc[UR4][R6.64] ;
        /*0030*/                   LDG.E R3, desc[UR4][R6.64] ;
        /*0040*/              @UP1 MUFU.EX2 R9, R8 ;
        /*0050*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0060*/                   STL [R1], R4 ;
        /*0070*/                   HMMA.1688.F32.TF32 R4, R8, R10, R4 ;
        /*0080*/                   NOP ;
\t\tFunction : _ZN7flowops9transformIdEEvPKfPf
        /*0000*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
"""


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> object:
    if not _CI.exists():
        pytest.skip("needs the source tree")
    monkeypatch.syspath_prepend(str(_CI))
    sys.modules.pop("sass_report", None)
    import sass_report  # type: ignore[import-not-found]

    return sass_report


def test_instructions_are_counted_by_kind_and_width(report: object) -> None:
    (name, opcodes), (_, other) = report.kernels(_DUMP)
    assert name.endswith("transformIfEEvPKfPf")
    found = {kind: n for kind, n in report.columns(opcodes).items() if n}
    assert found == {
        "instructions": 8,
        "load 128": 1,
        "load 32": 1,
        "load 16": 1,
        "store 64": 1,
        "products on tensor cores": 1,
        "special functions": 1,
        "local loads, stores": 1,
    }
    assert report.columns(other)["barriers"] == 1


def test_a_line_has_all_instantiations_of_a_kernel(report: object) -> None:
    head, _, line = report.table(_DUMP)
    row = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert row["| kernel"] == "| `transform`"
    assert row["instantiations"] == "2"
    assert row["load 128"] == "0-1"
    assert row["instructions"] == "1-8"
