"""Writes the table of a committed result into README.md, between its markers.

``python -m benchmarks.table benchmarks/results/FILE.json [--check]``
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- benchmark table: begin -->\n", "<!-- benchmark table: end -->\n"


def cell(rows: dict[str, Any] | None, rival: str) -> str:
    """How many times faster than the rival, with ``!`` where the machine was never quiet."""
    if rows is None or rival not in rows:
        return "-"
    mark = "" if rows[rival]["clean"] and rows["ours"]["clean"] else "!"
    return f"{rows[rival]['median'] / rows['ours']['median']:.1f}{mark}"


def table(report: dict[str, Any], source: str) -> str:
    """Return the Markdown of one report."""
    e = report["environment"]
    lines = [
        "Times faster than PyTorch, eager and `torch.compile`d, medians of interleaved samples; "
        f"{e['device']}, {e['threads']} threads, torch {e['torch']}, {e['cpu_kernels']} kernels, "
        f"commit `{e['commit']}` "
        f"([{Path(source).name}]({source})). `!`: the machine was never quiet.",
        "",
        "| op | case | forward: eager | compile | forward + backward: eager | compile |",
        "|---|---|---|---|---|---|",
    ]
    for result in report["results"]:
        if "failed" in result or "step" in result:
            continue
        phases = [result.get(phase) for phase in ("forward", "forward_backward")]
        cells = [cell(rows, rival) for rows in phases for rival in ("eager", "compile")]
        lines.append(f"| `{result['op']}` | {result['case']} | {' | '.join(cells)} |")
    return "\n".join(lines + step_table(report)) + "\n"


def step_table(report: dict[str, Any]) -> list[str]:
    """Return the lines of a second table, with whole training steps, where there are any."""
    steps = [result for result in report["results"] if "step" in result]
    rivals = list(dict.fromkeys(name for r in steps for name in r["step"] if name != "ours"))
    if not steps:
        return []
    versions = {name: version for r in steps for name, version in r["versions"].items()}
    others = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "",
        f"Whole training steps: how many times as long as ours they take ({others}):",
        "",
        f"| model | case | {' | '.join(rivals)} |",
        f"|---|---{'|---' * len(rivals)}|",
    ]
    for result in steps:
        rows = result["step"]
        cells = [cell(rows, name) for name in rivals]
        lines.append(f"| {result['op']} | {result['case']} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--check", action="store_true", help="only say whether README.md has it")
    options = parser.parse_args(arguments)
    source = options.result.resolve().relative_to(README.parent).as_posix()
    text = README.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    wanted = head + BEGIN + table(json.loads(options.result.read_text()), source) + END + tail
    if options.check:
        return int(wanted != text)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
