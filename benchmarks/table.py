"""Writes the tables of a committed result into README.md and docs/benchmarks.md, between markers.

``python -m benchmarks.table benchmarks/results/FILE.json [--check]``; the bytes of
``benchmarks/results/traffic.json`` and ``traffic-sm_90.json`` go with them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRAFFIC = ROOT / "benchmarks/results/traffic.json"
TRITON = ROOT / "benchmarks/results/traffic-sm_90.json"
BEGIN, END = "<!-- benchmark table: begin -->\n", "<!-- benchmark table: end -->\n"


def cell(rows: dict[str, Any] | None, rival: str) -> str:
    """How many times faster than the rival, with ``!`` where the machine was never quiet."""
    if rows is None or rival not in rows:
        return "-"
    mark = "" if rows[rival]["clean"] and rows["ours"]["clean"] else "!"
    return f"{rows[rival]['median'] / rows['ours']['median']:.1f}{mark}"


def table(report: dict[str, Any], source: str) -> str:
    """Return all Markdown of one report."""
    return summary(report, source) + details(report)


def summary(report: dict[str, Any], source: str) -> str:
    """Return the tables for README.md: ops, training steps and samples; and what failed."""
    e = report["environment"]
    lines = [
        "Times faster than PyTorch, eager and `torch.compile`d, medians of interleaved samples; "
        f"{e['device']}, {e['threads']} threads, torch {e['torch']}, {e['cpu_kernels']} kernels, "
        f"commit `{e['commit']}` "
        f"([{Path(source).name}]({source})). `!`: the machine was never quiet.",
    ]
    lines += op_table(report) + step_table(report) + sample_table(report) + failures(report)
    return "\n".join(lines) + "\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of one table."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body]


def rivals_in(results: Sequence[dict[str, Any]], phase: str) -> list[str]:
    """Everything that was timed in this phase, except ours, in order of appearance."""
    return list(dict.fromkeys(name for r in results for name in r[phase] if name != "ours"))


def op_table(report: dict[str, Any]) -> list[str]:
    """Return the lines of the table of ops, where there are any."""
    body = [
        [
            f"`{result['op']}`",
            result["case"],
            *(
                cell(result.get(phase), rival)
                for phase in ("forward", "forward_backward")
                for rival in ("eager", "compile")
            ),
        ]
        for result in _having(report, "forward")
    ]
    head = ["op", "case", "forward: eager", "compile", "forward + backward: eager", "compile"]
    return ["", *markdown(head, body)] if body else []


def _ratio_table(results: Sequence[dict[str, Any]], phase: str) -> list[str]:
    rivals = rivals_in(results, phase)
    body = [
        [result["op"], result["case"], *(cell(result[phase], name) for name in rivals)]
        for result in results
    ]
    return markdown(["model", "case", *rivals], body)


def _having(report: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [result for result in report["results"] if phase in result]


def _own_models(report: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [result for result in _having(report, phase) if result["op"] != "swapped"]


def _versions(results: Sequence[dict[str, Any]]) -> str:
    versions = {name: version for r in results for name, version in r.get("versions", {}).items()}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def step_table(report: dict[str, Any]) -> list[str]:
    """Return the lines of a second table, with whole training steps, where there are any."""
    steps = _own_models(report, "step")
    if not steps:
        return []
    title = "Whole training steps: how many times as long as ours they take"
    others = _versions(steps)
    return ["", f"{title} ({others}):" if others else f"{title}:", "", *_ratio_table(steps, "step")]


def sample_table(report: dict[str, Any]) -> list[str]:
    """Return the lines of the table of samples."""
    samples = _own_models(report, "sample")
    if not samples:
        return []
    return ["", "Samples, likewise:", "", *_ratio_table(samples, "sample")]


def swapped_table(report: dict[str, Any]) -> list[str]:
    """Return the lines of the table of models of other packages, before and after."""
    results = [r for r in _having(report, "step") if r["op"] == "swapped"]
    if not results:
        return []
    body = [
        [result["case"], *(cell(result.get(phase), name) for phase in ("step", "sample"))]
        for result in results
        for name in rivals_in([result], "step")
    ]
    title = (
        "Times faster after `flowops.accelerate(model)`, the rest of the program as it was "
        f"({_versions(results)})."
    )
    return [title, "", *markdown(["model", "training step", "samples"], body)]


def package_table(report: dict[str, Any]) -> list[str]:
    """Return the lines of the table of the packages' own functions."""
    results = [r for r in _having(report, "forward") if r.get("versions")]
    if not results:
        return []
    packages = list(dict.fromkeys(name for r in results for name in r["versions"]))
    body = [
        [
            f"`{result['op']}`",
            result["case"],
            *(
                f"{cell(result['forward'], name)} / {cell(result.get('forward_backward'), name)}"
                + ("*" if name in result["not_compared"] else "")
                for name in packages
            ),
        ]
        for result in results
    ]
    reasons = {
        f"{name}'s `{result['op']}`: {reason}"
        for result in results
        for name, reason in result["not_compared"].items()
    }
    lines = [f"Forward / forward + backward ({_versions(results)}).", ""]
    lines += markdown(["op", "case", *packages], body)
    notes = ["", f"\\* Not the same outputs: {'; '.join(sorted(reasons))}."] if reasons else []
    return lines + notes


def scaling_table(report: dict[str, Any]) -> list[str]:
    """Return the lines of the table of fitted exponents."""
    sweeps = [sweep for sweep in report.get("scaling", []) if "failed" not in sweep]
    if not sweeps:
        return []
    body = [
        [
            f"`{sweep['op']}`",
            sweep["axis"],
            f"{sweep['sizes'][0]} to {sweep['sizes'][-1]}",
            *(f"{sweep['exponents'][name]:.2f}" for name in ("ours", "eager")),
        ]
        for sweep in sweeps
    ]
    title = "Exponents of forward + backward, by least squares in logarithms over the range."
    return [title, "", *markdown(["op", "size", "range", "ours", "eager"], body)]


def details(report: dict[str, Any]) -> str:
    """Return the tables for docs/benchmarks.md, of what was measured."""
    lines: list[str] = []
    for title, part in (
        ("Models of other packages, before and after", swapped_table(report)),
        ("The packages' own functions", package_table(report)),
        ("How the cost grows with a size", scaling_table(report)),
        ("Bandwidth and arithmetic of the forward passes", throughput_table(report)),
        ("Memory, most at a time and kept for the backward pass", memory_table(report)),
    ):
        if part:
            lines += ["", f"### {title}", "", *part]
    return "\n".join([*lines, ""])


def throughput_table(report: dict[str, Any]) -> list[str]:
    """Return our GB/s beside a copy of as many bytes, and GFLOP/s beside a matrix product."""
    body = []
    for result in report["results"]:
        if "traffic" not in result or "copy" not in result["forward"]:
            continue
        bandwidths = rates(result["forward"], "copy", result["traffic"], result["traffic"])
        arithmetic = ["-"] * 3
        if result["flops"] and "gemm" in result["forward"]:
            arithmetic = rates(result["forward"], "gemm", result["flops"], report["gemm_flops"])
        body.append([f"`{result['op']}`", result["case"], *bandwidths, *arithmetic])
    head = ["op", "case", "GB/s", "copy", "share", "GFLOP/s", "matrix product", "share"]
    return markdown(head, body) if body else []


def rates(rows: dict[str, Any], roof: str, amount: float, roof_amount: float) -> list[str]:
    """Return what ours achieves in 1e9 a second, what the roof does, and the share."""
    ours, best = amount / rows["ours"]["median"], roof_amount / rows[roof]["median"]
    return [f"{ours / 1e9:.1f}", f"{best / 1e9:.1f}", f"{ours / best:.0%}"]


def memory_table(report: dict[str, Any]) -> list[str]:
    """Return the bytes of forward+backward, and the operators of a training step."""
    body = [
        [
            f"`{result['op']}`",
            result["case"],
            *(
                megabytes(result["memory"], name, key)
                for key in ("peak", "kept")
                for name in ("ours", "eager")
            ),
            *(str(result.get("calls", {}).get(name, "-")) for name in ("ours", "eager")),
        ]
        for result in _having(report, "memory")
    ]
    head = ["op", "case", "peak: ours", "eager", "kept: ours", "eager", "operators: ours", "eager"]
    return ["In MB.", "", *markdown(head, body)] if body else []


def traffic_table(report: dict[str, Any]) -> list[str]:
    """Return the lines of the table of the bytes that ``benchmarks.traffic`` counted."""
    e = report["environment"]
    title = (
        "In MB, and how many times ours, counted and not timed (`python -m benchmarks.traffic`): "
        f"{e['cuda'] or 'CPU'} code, torch {e['torch']}, commit `{e['commit']}`. Least: what the "
        "forward pass must move, as for the bandwidths."
    )
    counted = {name for r in report["results"] for counts in r["bytes"].values() for name in counts}
    names = [name for name in ("ours", "compile", "Triton", "eager") if name in counted]
    if "Triton" in names:
        title += " Triton: `compile`'s code for an H100, which was faked."
    body = [
        [
            f"`{result['op']}`",
            result["case"],
            f"{result['traffic'] / 1e6:.3g}",
            *(
                traffic_cell(result["bytes"].get(phase), name)
                for phase in ("forward", "forward_backward")
                for name in names
            ),
        ]
        for result in report["results"]
    ]
    rivals = names[1:]
    both = ["forward: ours", *rivals, "forward + backward: ours", *rivals]
    return [title, "", *markdown(["op", "case", "least", *both], body)]


def add_triton(report: dict[str, Any], faked: dict[str, Any]) -> dict[str, Any]:
    """Put what ``compile`` moves in the second count into the first, as ``Triton``."""
    other = {(result["op"], result["case"]): result["bytes"] for result in faked["results"]}
    for result in report["results"]:
        for phase, counts in other.get((result["op"], result["case"]), {}).items():
            result["bytes"][phase]["Triton"] = counts["compile"]
    return report


def traffic_cell(counts: dict[str, int] | None, name: str) -> str:
    """MB, and how many times ours."""
    if counts is None or name not in counts:
        return "-"
    times = "" if name == "ours" else f" ({counts[name] / counts['ours']:.1f})"
    return f"{counts[name] / 1e6:.3g}{times}"


def megabytes(memory: dict[str, Any], name: str, key: str) -> str:
    return f"{memory[name][key] / 1e6:.3g}" if name in memory else "-"


def failures(report: dict[str, Any]) -> list[str]:
    """Say what has no figures, and why."""
    results = report["results"] + report.get("scaling", [])
    failed = {
        f"- {r['op']}, {r.get('case') or r['axis']}: {r['failed']}"
        for r in results
        if "failed" in r
    }
    failed |= {
        f"- {r['op']}, {r['case']}: {name}: {reason}"
        for r in report["results"]
        for name, reason in r.get("left_out", {}).items()
    }
    return ["", "Without figures:", "", *sorted(failed)] if failed else []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--check", action="store_true", help="only say whether README.md has it")
    options = parser.parse_args(arguments)
    source = options.result.resolve().relative_to(ROOT).as_posix()
    report = json.loads(options.result.read_text())
    counts = add_triton(*(json.loads(file.read_text()) for file in (TRAFFIC, TRITON)))
    traffic = traffic_table(counts)
    pages = details(report) + "\n".join(["", "### Bytes read and written", "", *traffic, ""])
    tables = {"README.md": summary(report, source), "docs/benchmarks.md": pages}
    stale = [name for name, text in tables.items() if not _put(ROOT / name, text, options.check)]
    return int(options.check and bool(stale))


def _put(path: Path, tables: str, check: bool) -> bool:
    """Write the tables between the file's markers, unless only to check; were they there?"""
    text = path.read_text()
    head, rest = text.split(BEGIN)
    wanted = head + BEGIN + tables + END + rest.split(END)[1]
    if not check:
        path.write_text(wanted)
    return wanted == text


if __name__ == "__main__":
    sys.exit(main())
