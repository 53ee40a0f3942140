"""The README's example runs, and its figures are those of a committed result."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_example_runs() -> None:
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", README, re.S).group(1)
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["images"].shape == (16, 1, 8, 8)
    assert namespace["x"].shape == (5, 6)


def test_tutorial_runs() -> None:
    namespace: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), re.S):
        exec(compile(code, "docs/tutorial.md", "exec"), namespace)
    assert namespace["log_prob"].shape == (256,)


def test_table_is_that_of_a_committed_result() -> None:
    table = README.split("<!-- benchmark table: begin -->")[1].split("<!-- benchmark table: end")[0]
    sources = re.findall(r"\]\((benchmarks/results/[^)]+\.json)\)", table)
    assert bool(sources) == ("|" in table)
    for source in sources:
        command = [sys.executable, "-m", "benchmarks.table", source, "--check"]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/tutorial.md", "docs/benchmarks.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
        assert (folder / target).exists(), target
