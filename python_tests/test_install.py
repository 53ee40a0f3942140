"""Every way to install the package, each into an environment of its own, building it there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["_build_backend", "benchmarks", "csrc", "flowops", "setup.py", "pyproject.toml"]
SOURCES += ["MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CMakeLists.txt"]

pytestmark = pytest.mark.slow

Run = Callable[..., str]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources without anything built."""
    root = tmp_path / "checkout"
    root.mkdir()
    left_out = ["--exclude=*.so", "--exclude=_built_for.py", "--exclude=__pycache__"]
    present = [name for name in SOURCES if (ROOT / name).exists()]
    pack = subprocess.Popen(
        ["tar", "c", *left_out, *present],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    subprocess.run(["tar", "x"], cwd=root, stdin=pack.stdout, check=True)
    assert pack.wait() == 0
    return root


@pytest.fixture
def make_environment(tmp_path: Path) -> Callable[[bool], Run]:
    """Makes a virtual environment, with the torch that runs the tests or with none."""

    def make(with_torch: bool) -> Run:
        home = tmp_path / "environment"
        venv.create(home, with_pip=True)
        python = home / "bin/python"
        if with_torch:
            site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
            (site / "running.pth").write_text(sysconfig.get_path("purelib") + "\n")

        def run(*arguments: str, cwd: Path = tmp_path) -> str:
            # Without the environment of the tests: whoever installs has not set it.
            kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX")}
            # Where there is ccache, what one test has compiled is there for the next.
            kept |= {"CCACHE_BASEDIR": str(tmp_path), "CCACHE_NOHASHDIR": "1"}
            done = subprocess.run(
                [python, *arguments],
                cwd=cwd,
                env={**kept, "PATH": f"{home / 'bin'}{os.pathsep}{kept['PATH']}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-5000:]
            return done.stdout

        return run

    return make


def check_installed(run: Run) -> Path:
    """The package imports, is built for the torch at hand, and is where this returns."""
    code = (
        "import flowops; i = flowops._library.info(); print(i['torch_built'], i['torch_running'])"
    )
    built, running = run("-c", code).split()
    assert built == running
    return Path(run("-c", "import flowops; print(flowops.__file__)").strip())


def required_torch(run: Run) -> str:
    code = "import importlib.metadata as m; print(*m.requires('flowops'), sep='\\n')"
    return next(line for line in run("-c", code).splitlines() if line.startswith("torch"))


def test_install_uses_the_torch_that_is_there(checkout, make_environment):
    run = make_environment(with_torch=True)
    log = run("-m", "pip", "install", "-v", str(checkout))
    assert "Collecting torch" not in log
    assert f"building against torch {torch.__version__}" in log
    assert (checkout / "build").exists()
    assert check_installed(run).is_relative_to(sys.prefix) is False
    assert required_torch(run).startswith("torch~=")


def test_install_without_torch_brings_the_one_it_builds_for(checkout, make_environment):
    run = make_environment(with_torch=False)
    run("-m", "pip", "install", str(checkout))
    check_installed(run)
    assert required_torch(run).startswith("torch==")


def test_editable_install_imports_the_checkout(checkout, make_environment):
    run = make_environment(with_torch=True)
    run("-m", "pip", "install", "-e", str(checkout))
    assert check_installed(run).is_relative_to(checkout)


def test_install_without_build_isolation(checkout, make_environment):
    run = make_environment(with_torch=True)
    run("-m", "pip", "install", "setuptools>=77", "ninja", "packaging")
    run("-m", "pip", "install", "--no-build-isolation", "--no-deps", str(checkout))
    check_installed(run)


def test_sdist_builds_into_a_wheel(checkout, make_environment):
    run = make_environment(with_torch=True)
    run("-m", "pip", "install", "build", "setuptools>=77", "ninja", "packaging")
    run("-m", "build", "--no-isolation", str(checkout))
    (wheel,) = (checkout / "dist").glob("*.whl")
    run("-m", "pip", "install", "--no-deps", str(wheel))
    check_installed(run)


def test_failed_build_says_why(checkout, make_environment):
    run = make_environment(with_torch=True)
    if torch.version.cuda is not None:
        pytest.skip("needs a CPU build of torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWOPS_CUDA", "1")
        with pytest.raises(AssertionError, match="flowops: FLOWOPS_CUDA=1 needs a CUDA build of"):
            run("-m", "pip", "install", str(checkout))
