"""The record of what has run on a GPU: what it covers, and what it no longer covers."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowops import _library

spec = importlib.util.spec_from_file_location(
    "record", Path(__file__).resolve().parents[1] / "benchmarks/record.py"
)
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)

JUNIT = """<testsuites><testsuite>
<testcase classname="python_tests.ops.test_actnorm" name="a"/>
<testcase classname="python_tests.ops.test_actnorm" name="b"><skipped/></testcase>
<testcase classname="python_tests.ops.test_actnorm_wide_geometry" name="c"/>
<testcase classname="python_tests.ops.test_coupling" name="d"><failure/></testcase>
<testcase classname="python_tests.ops.test_idle" name="e"><skipped/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = [f"cuda/{op}_{part}" for op in ("actnorm", "coupling") for part in ("cuda.cpp", "x.cu")]
    headers = ["math/actnorm.h", "math/scalar.h", "common/cuda.cuh", "ops/coupling_params.h"]
    for name in [*files, *headers, "common/vec.h", "common/python_module.cpp", "ops/coupling.cpp"]:
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    return tmp_path


def write(tree: Path, name: str = "gpu-a", **passed: bool) -> None:
    content = {"sources": record.hashes(tree), "passed": passed}
    (tree / f"benchmarks/results/{name}.json").write_text(json.dumps(content))


def test_without_a_record_nothing_is_verified(tree):
    assert record.unverified(tree) == ["actnorm", "coupling"]


def test_a_failed_or_missing_op_is_not_verified(tree):
    write(tree, actnorm=False)
    assert record.unverified(tree) == ["actnorm", "coupling"]
    write(tree, "gpu-b", actnorm=True)
    assert record.unverified(tree) == ["coupling"]


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ("math/actnorm.h", ["actnorm"]),
        ("cuda/coupling_x.cu", ["coupling"]),
        ("math/scalar.h", ["actnorm", "coupling"]),
        ("common/cuda.cuh", ["actnorm", "coupling"]),
        ("cuda/actnorm_new.cuh", ["actnorm"]),
        ("ops/coupling_params.h", ["coupling"]),
        ("ops/coupling.cpp", []),
        ("common/vec.h", []),
        ("common/python_module.cpp", []),
    ],
)
def test_a_change_takes_the_verification_from_those_it_concerns(tree, changed, lost):
    write(tree, actnorm=True, coupling=True)
    assert record.unverified(tree) == []
    (tree / "csrc" / changed).write_text("changed")
    assert record.unverified(tree) == lost


def test_an_op_passes_by_tests_that_ran_and_did_not_fail(tmp_path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    stems = ["actnorm", "actnorm_wide", "coupling", "idle", "absent"]
    assert record.passed([tmp_path / "junit.xml"], {}, stems) == {
        "actnorm": True, "actnorm_wide": True, "coupling": False, "idle": False, "absent": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "clean"), [(0, True), (5, True), (124, True), (9, False), (1, False)]
)
def test_an_op_in_which_the_sanitizer_found_something_has_not_passed(tmp_path, code, clean):
    (tmp_path / "junit.xml").write_text(JUNIT)
    (tmp_path / "test_actnorm-racecheck.exit").write_text(f"{code}\n")
    exits = record.sanitizer_exits(tmp_path)
    stems = ["actnorm", "actnorm_wide"]
    assert record.passed([tmp_path / "junit.xml"], exits, stems) == {
        "actnorm": clean, "actnorm_wide": True,
    }  # fmt: skip


def test_write_ties_the_results_to_the_sources(tmp_path):
    (tmp_path / "ptxas.txt").write_text("a table\n")
    (tmp_path / "t.json").write_text('{"environment": {"device": "H"}, "results": [1]}')
    (tmp_path / "junit.xml").write_text(JUNIT)
    out = tmp_path / "gpu.json"
    options = ["--out", out, "--ptxas", tmp_path / "ptxas.txt", "--timings", tmp_path / "t.json"]
    options += ["--sanitizer", tmp_path]
    assert record.main(["write", *map(str, options), str(tmp_path / "junit.xml")]) == 0
    written = json.loads(out.read_text())
    assert written["sources"] == record.hashes()
    assert written["passed"]["actnorm"]
    assert not written["passed"]["spectral_norm"]


def test_info_names_the_unverified_ops():
    assert _library.info()["cuda_not_verified"] == record.unverified()


def test_sanitizer_has_tests_to_run() -> None:
    root = Path(__file__).resolve().parents[1]
    (selection,) = re.findall(r'-k "(.*?)"', (root / "benchmarks/gpu_check.sh").read_text())
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-k", selection]
    done = subprocess.run(
        [*command, "python_tests/ops/test_mlp.py"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "float32" in done.stdout
