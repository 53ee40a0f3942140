"""Draws the figures of a result: ratios, roofs, whole models and cost against size.

``python -m benchmarks.plot benchmarks/results/FILE.json [--out docs/images]`` writes PNG and SVG.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.table import rivals_in

#: Text stays text, and the same result gives the same file.
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "flowops", "font.size": 8}


def label(result: dict[str, Any]) -> str:
    return f"{result['op']} {result['case']}"


def ratio(rows: dict[str, Any], name: str) -> float:
    """How many times as long as ours; not a number where it was not timed."""
    return rows[name]["median"] / rows["ours"]["median"] if name in rows else float("nan")


def bars(axes: Axes, results: Sequence[dict[str, Any]], phase: str, rivals: Sequence[str]) -> None:
    """Draw one group of horizontal bars a result, one bar a rival, on a logarithmic axis."""
    height = 0.8 / len(rivals)
    places = np.arange(len(results))
    for i, name in enumerate(rivals):
        widths = [ratio(result.get(phase, {"ours": {}}), name) for result in results]
        # Bars begin at 1, so that a loss points the other way.
        axes.barh(places + i * height, np.array(widths) - 1, height, left=1, label=name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(places + 0.4 - height / 2, [label(result) for result in results])
    axes.set(title=phase.replace("_", " + "), xlabel="times as long as ours")
    axes.legend()


def phase_figure(
    report: dict[str, Any], phases: Sequence[str], chosen: Sequence[str] | None = None
) -> Figure | None:
    """Return bars of all results that have the first phase, one panel a phase."""
    results = [result for result in report["results"] if phases[0] in result]
    if not results:
        return None
    rivals = {
        phase: [
            name
            for name in rivals_in([r for r in results if phase in r], phase)
            if chosen is None or name in chosen
        ]
        for phase in phases
    }
    shown = [phase for phase in phases if rivals[phase]]
    inches = max(0.24, 0.09 * max(map(len, rivals.values())))
    figure = Figure(figsize=(6 + 3 * len(shown), 1.5 + inches * len(results)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, phase in zip(panels, shown, strict=True):
        bars(axes, results, phase, rivals[phase])
    panels[0].set_ylim(len(results), -0.5)
    return figure


def ratio_figure(report: dict[str, Any]) -> Figure | None:
    return phase_figure(report, ("forward", "forward_backward"), ("eager", "compile"))


def model_figure(report: dict[str, Any]) -> Figure | None:
    return phase_figure(report, ("step", "sample"))


def roofline_figure(report: dict[str, Any]) -> Figure | None:
    """Return bandwidth over bytes, and arithmetic over its intensity, under their roofs."""
    results = [r for r in report["results"] if "copy" in r.get("forward", {}) and "traffic" in r]
    if not results:
        return None
    figure = Figure(figsize=(10, 4), layout="constrained")
    memory, arithmetic = figure.subplots(1, 2)
    _bandwidth_panel(memory, results)
    multiplying = [r for r in results if r["flops"] and "gemm" in r["forward"]]
    _arithmetic_panel(arithmetic, multiplying, report.get("gemm_flops", 0))
    return figure


def _bandwidth_panel(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    ordered = sorted(results, key=lambda result: result["traffic"])
    for op in dict.fromkeys(result["op"] for result in ordered):
        chosen = [result for result in ordered if result["op"] == op]
        axes.plot(*_bandwidths(chosen, "ours"), "o", markersize=4, label=op)
    axes.plot(*_bandwidths(ordered, "copy"), "k--", linewidth=0.8, label="copy")
    axes.set(xscale="log", yscale="log", xlabel="bytes moved at the least", ylabel="GB/s")
    axes.legend(fontsize="x-small")


def _bandwidths(results: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    sizes = [result["traffic"] for result in results]
    return sizes, [r["traffic"] / r["forward"][name]["median"] / 1e9 for r in results]


def _arithmetic_panel(axes: Axes, results: Sequence[dict[str, Any]], gemm_flops: float) -> None:
    """Draw the roofline: the lower of what the copy and what the matrix product allow."""
    for op in dict.fromkeys(result["op"] for result in results):
        chosen = [result for result in results if result["op"] == op]
        for name, mark in (("ours", "o"), ("eager", "x")):
            timed = [result for result in chosen if name in result["forward"]]
            rates = [r["flops"] / r["forward"][name]["median"] / 1e9 for r in timed]
            axes.plot(
                [r["flops"] / r["traffic"] for r in timed], rates, mark, label=f"{op}, {name}"
            )
    if results:
        bandwidth = max(r["traffic"] / r["forward"]["copy"]["median"] for r in results) / 1e9
        roof = max(gemm_flops / r["forward"]["gemm"]["median"] for r in results) / 1e9
        intensity = np.geomspace(0.5, 1000, 50)
        limit = np.minimum(bandwidth * intensity, roof)
        axes.plot(intensity, limit, "k--", linewidth=0.8, label="copy and matrix product")
        axes.legend(fontsize="x-small")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")


def scaling_figure(report: dict[str, Any]) -> Figure | None:
    """Return one panel a sweep: times, and the power laws fitted to them."""
    sweeps = [sweep for sweep in report.get("scaling", []) if "failed" not in sweep]
    if not sweeps:
        return None
    columns = min(4, len(sweeps))
    rows = -(-len(sweeps) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, sweep in zip(panels, sweeps, strict=False):
        _scaling_panel(axes, sweep)
    for axes in list(figure.axes)[len(sweeps) :]:
        axes.set_visible(False)
    return figure


def _scaling_panel(axes: Axes, sweep: dict[str, Any]) -> None:
    sizes = np.array(sweep["sizes"], dtype=float)
    for name, seconds in sweep["seconds"].items():
        power = sweep["exponents"][name]
        (points,) = axes.plot(sizes, seconds, "o", markersize=4, label=f"{name}: {power:.2f}")
        # Least squares in logarithms: the line goes through the mean of the points.
        middle = np.exp(np.mean(np.log(seconds)) - power * np.mean(np.log(sizes)))
        axes.plot(sizes, middle * sizes**power, color=points.get_color(), linewidth=0.8)
    axes.set(xscale="log", yscale="log", title=sweep["op"], xlabel=sweep["axis"], ylabel="seconds")
    axes.set_xticks(sizes, [str(size) for size in sweep["sizes"]])
    axes.xaxis.minorticks_off()
    axes.legend(title="exponent", fontsize="x-small")


FIGURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "ratios": ratio_figure,
    "models": model_figure,
    "roofline": roofline_figure,
    "scaling": scaling_figure,
}


def draw(report: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """Write every figure for which the report has data; return the files."""
    written: list[Path] = []
    with mpl.rc_context(_STYLE):
        for name, make in FIGURES.items():
            figure = make(report)
            for kind in () if figure is None else ("png", "svg"):
                path = folder / f"{stem}-{name}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(path, dpi=80, metadata=metadata)
                written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images"), help="folder (%(default)s)"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in draw(json.loads(options.result.read_text()), options.out, options.result.stem):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
