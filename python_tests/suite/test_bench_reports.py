"""Table and figures of a small report; fits; the comparison with another commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import base, plot, scaling, settings, table
from benchmarks.case import Case, Sweep
from benchmarks.run import main, parser
from benchmarks.settings import Settings
from flowops.timing import Timing


def row(median: float, clean: bool = True) -> dict:
    return {"median": median, "low": median, "high": median, "samples": 9, "clean": clean}


REPORT = {
    "environment": {
        "device": "a machine", "threads": 2, "torch": "2", "cpu_kernels": "AVX2", "commit": "abc",
    },
    "gemm_flops": 8e9,
    "results": [
        {
            "op": "spline", "case": "(4, 4)", "error": 0.0, "traffic": 3e6, "flops": 4e9,
            "absent": ["zuko"], "left_out": {"peer": "error 1.0 above 0.1"},
            "not_compared": {"nflows": "other bins"}, "versions": {"nflows": "0.14"},
            "memory": {"ours": {"peak": 2e6, "kept": 1e6}, "eager": {"peak": 8e6, "kept": 4e6}},
            "forward": {
                "eager": row(2e-3), "ours": row(1e-3), "compile": row(5e-4), "nflows": row(3e-3),
                "copy": row(5e-4), "gemm": row(1e-3),
            },
            "forward_backward": {"eager": row(4e-3, False), "ours": row(1e-3), "nflows": row(7e-3)},
        },
        {"op": "broken", "case": "(1,)", "error": 1.0, "failed": "error 1.0 above 0.1"},
        {
            "op": "glow", "case": "small", "absent": [], "left_out": {},
            "versions": {"zuko": "1.6"},
            "memory": {"ours": {"peak": 3e6, "kept": 1e6}}, "calls": {"ours": 17, "eager": 99},
            "step": {"ours": row(1e-2), "eager": row(2e-2), "zuko": row(5e-2)},
            "sample": {"ours": row(1e-2), "eager": row(6e-3)},
        },
    ],
    "scaling": [
        {
            "op": "spline", "axis": "batch", "sizes": [1, 2, 4],
            "seconds": {"ours": [1.0, 2.0, 4.0], "eager": [1.0, 4.0, 16.0]},
            "exponents": {"ours": 1.0, "eager": 2.0},
        },
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "| `spline` | (4, 4) | 2.0 | 0.5 | 4.0! | - |",
        "| glow | small | 2.0 | 5.0 |",
        "| glow | small | 0.6 |",
        "| `spline` | (4, 4) | 3.0 / 7.0* |",
        "nflows's `spline`: other bins",
        "| `spline` | batch | 1 to 4 | 1.00 | 2.00 |",
        "| `spline` | (4, 4) | 3.0 | 6.0 | 50% | 4000.0 | 8000.0 | 50% |",
        "| `spline` | (4, 4) | 2 | 8 | 1 | 4 | - | - |",
        "| `glow` | small | 3 | - | 1 | - | 17 | 99 |",
        "- broken, (1,): error 1.0 above 0.1",
        "- spline, (4, 4): peer: error 1.0 above 0.1",
    ],
)
def test_table_says(line):
    assert line in table.table(REPORT, "benchmarks/results/r.json")


def test_table_of_bytes_says():
    counts = {"ours": 2_000_000, "compile": 3_000_000, "eager": 8_000_000}
    result = {"op": "spline", "case": "(4, 4)", "traffic": 1.5e6, "bytes": {"forward": counts}}
    lines = table.traffic_table(
        {"environment": REPORT["environment"] | {"cuda": None}, "results": [result]}
    )
    assert "commit `abc`" in lines[0]
    assert lines[-1] == "| `spline` | (4, 4) | 1.5 | 2 | 3 (1.5) | 8 (4.0) | - | - | - |"


def test_table_of_bytes_has_tritons_beside_compiles():
    def report(compiled):
        counts = {"ours": 2_000_000, "compile": compiled, "eager": 8_000_000}
        cases = [
            {"op": "spline", "case": name, "traffic": 1.5e6, "bytes": {"forward": dict(counts)}}
            for name in ("a", "b")
        ]
        return {"environment": REPORT["environment"] | {"cuda": None}, "results": cases}

    faked = report(5_000_000)
    del faked["results"][1]
    lines = table.traffic_table(table.add_triton(report(3_000_000), faked))
    assert "faked" in lines[0]
    assert lines[-2] == "| `spline` | a | 1.5 | 2 | 3 (1.5) | 5 (2.5) | 8 (4.0) | - | - | - | - |"
    assert lines[-1] == "| `spline` | b | 1.5 | 2 | 3 (1.5) | - | 8 (4.0) | - | - | - | - |"


def test_models_of_other_packages_have_a_table_of_their_own():
    swapped = {
        "op": "swapped", "case": "a flow", "versions": {"zuko": "1.6"},
        "step": {"ours": row(1e-2), "zuko": row(4e-2)}, "sample": {"ours": row(1e-2)},
    }  # fmt: skip
    report = REPORT | {"results": [*REPORT["results"], swapped]}
    assert "swapped" not in table.summary(report, "r.json")
    details = table.details(report)
    assert "### Models of other packages, before and after" in details
    assert "(zuko 1.6)" in details
    assert "| a flow | 4.0 | - |" in details
    assert "before and after" not in table.details(REPORT)


def test_table_of_models_alone_has_no_empty_parts():
    report = REPORT | {"results": REPORT["results"][2:], "scaling": []}
    text = table.table(report, "r.json")
    assert "| op | case | forward" not in text
    assert "Without figures" not in text
    assert "| glow |" in text


def test_figures_are_drawn(tmp_path):
    files = plot.draw(REPORT, tmp_path, "r")
    assert sorted(path.name for path in files) == sorted(
        f"r-{name}.{kind}"
        for name in ("ratios", "models", "roofline", "scaling")
        for kind in ("png", "svg")
    )
    assert all(0 < path.stat().st_size < 200_000 for path in files)
    text = {name: (tmp_path / f"r-{name}.svg").read_text() for name in plot.FIGURES}
    assert "spline (4, 4)" in text["ratios"]
    assert "zuko" in text["models"]
    assert "copy" in text["roofline"]
    assert "eager: 2.00" in text["scaling"]


def test_bars_have_the_ratios_of_the_report():
    figure = plot.ratio_figure(REPORT)
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].patches]
    assert ends == pytest.approx([2.0, 0.5])


def test_a_part_without_data_is_not_drawn(tmp_path):
    report = REPORT | {"results": [], "scaling": []}
    assert plot.draw(report, tmp_path, "r") == []


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_of_a_power_law(power):
    sizes = [3, 10, 40, 100]
    assert scaling.exponent(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_sweep_fits_what_it_measured(monkeypatch):
    cost = {"size": 0}

    def case_of(size: int) -> Case:
        cost["size"] = size
        return Case("a", "b", lambda: [torch.ones(2)], lambda x: [x * 2], lambda x: [x + x], 16)

    def measure(calls, **options):
        powers = {"ours": 1.0, "eager": 2.0}
        return {n: Timing(cost["size"] ** powers[n], 0, 0, 9, True) for n in calls}

    monkeypatch.setattr(scaling, "measure", measure)
    sweep = Sweep("a", "size", (2, 4, 8), case_of)
    result = scaling.run_sweep(sweep, Settings(torch.device("cpu")))
    assert result["seconds"]["eager"] == [4.0, 16.0, 64.0]
    assert result["exponents"] == pytest.approx({"ours": 1.0, "eager": 2.0})


def test_sweep_stops_where_the_gate_is_red():
    def case_of(size: int) -> Case:
        return Case("a", "b", lambda: [torch.ones(2)], lambda x: [x * 2], lambda x: [x], 16)

    result = scaling.run_sweep(
        Sweep("a", "size", (2, 4), case_of), Settings(torch.device("cpu"), budget=0.01)
    )
    assert "size 2" in result["failed"]
    assert "exponents" not in result


def test_base_must_be_a_commit(capsys):
    assert main(["--base", "no-such-commit"]) == 2
    error = capsys.readouterr().err
    assert "--base must be a commit, got no-such-commit" in error
    assert error.count("\n") == 1


def test_base_passes_the_selection_on(tmp_path):
    options = parser().parse_args(["--base", "HEAD", "--op", "actnorm", "--budget", "0.5"])
    given = base.arguments_of(options, tmp_path / "r.json")
    assert parser().parse_args(given).op == "actnorm"
    assert parser().parse_args(given).budget == 0.5
    assert parser().parse_args(given).ours_only
    assert parser().parse_args(given).base is None


def test_base_compares_medians_of_what_both_have():
    one, two = base.medians_of(REPORT), base.medians_of(REPORT)
    assert one["spline", "(4, 4)", "forward"] == 1e-3
    assert ("glow", "small", "sample") in one
    assert not any(op == "broken" for op, _, _ in one)
    two = {key: value / 2 for key, value in two.items() if key[0] != "glow"}
    lines = base.ratios([one, one], [two, two])
    assert len(lines) == 2
    assert all(line.endswith("2.00x") for line in lines)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A tree with one commit, whose setup.py does nothing but say that it ran."""
    root = tmp_path / "repository"
    files = {
        "benchmarks/a.py": "old", "flowops/a.py": "old", "csrc/a.cpp": "old",
        "setup.py": "from pathlib import Path; Path('built').write_text('yes')",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(root)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "old"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(base, "ROOT", root)
    return root


def test_base_is_built_in_a_work_tree_of_its_own(repository):
    (repository / "benchmarks/a.py").write_text("new")
    (repository / "flowops/a.py").write_text("new")
    with base.checkout("HEAD") as tree:
        assert (tree / "built").read_text() == "yes"
        assert (tree / "benchmarks/a.py").read_text() == "new"
        assert (tree / "flowops/a.py").read_text() == "old"
    assert not tree.exists()
    command = ["git", "worktree", "list"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("changed", [False, True])
def test_base_is_built_where_the_kernels_differ(repository, changed):
    (repository / "flowops/_C.so").write_text("module")
    if changed:
        (repository / "csrc/a.cpp").write_text("new")
    with base.checkout("HEAD") as tree:
        assert (tree / "built").exists() == changed
        assert (tree / "flowops/_C.so").exists() != changed


def test_base_that_does_not_build(repository):
    (repository / "setup.py").write_text("raise SystemExit('no compiler')")
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "broken"],
        cwd=repository,
        check=True,
    )
    with pytest.raises(SystemExit, match="no compiler"), base.checkout("HEAD"):
        pass


def test_environment_names_the_commit():
    facts = settings.environment(torch.device("cpu"))
    assert facts["commit"] == settings.git("describe", "--always", "--dirty", "--abbrev=12")
    assert facts["threads"] == torch.get_num_threads()
