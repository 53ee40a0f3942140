"""What the build decides, and every failure of a build or import: one sentence with its cure."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flowops import _library

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup_py():
    path = ROOT / "setup.py"
    spec = importlib.util.spec_from_file_location("flowops_setup", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    del sys.modules[spec.name]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    search_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": search_path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def one_sentence(message: object) -> str:
    text = str(message)
    assert "\n" not in text
    return text


def test_build_with_old_setuptools_names_the_cure(setup_py):
    setup_py.check_setuptools("77.0.3")
    with pytest.raises(SystemExit, match=r"77 or newer, got 65.5.0; run `pip install") as error:
        setup_py.check_setuptools("65.5.0")
    one_sentence(error.value)


def test_build_without_torch_names_the_cure(setup_py, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"torch is not installed.*pip install torch") as error:
        setup_py.import_torch()
    one_sentence(error.value)


def test_build_with_old_torch_names_both_versions(setup_py, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.9.1+cpu"))
    with pytest.raises(SystemExit, match=r"must be 2.11 or newer, got 2.9.1.*pip install") as error:
        setup_py.import_torch()
    one_sentence(error.value)


def test_build_without_compiler_names_the_cure(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match=r"no C.. compiler found.*apt-get install") as error:
        setup_py.check_compiler()
    one_sentence(error.value)


def test_compiler_launcher_is_left_to_torch(setup_py, monkeypatch):
    monkeypatch.setenv("CC", "ccache gcc")
    monkeypatch.setenv("CXX", "ccache g++")
    monkeypatch.setattr(setup_py.shutil, "which", lambda program: program)
    assert setup_py.check_compiler() == "g++"
    assert (os.environ["CC"], os.environ["CXX"]) == ("gcc", "g++")


@pytest.mark.parametrize(
    ("wanted", "torch_cuda", "toolkit", "message"),
    [
        ("1", None, "13.0", "needs a CUDA build of torch, got a CPU build"),
        ("1", "13.0", None, "needs nvcc, which was not found; install the CUDA 13.0 toolkit"),
        (None, "13.0", "12.8", "nvcc is CUDA 12.8 but torch was built with CUDA 13.0"),
        ("1", "12.6", "13.0", "nvcc is CUDA 13.0 but torch was built with CUDA 12.6"),
        ("yes", "13.0", "13.0", "FLOWOPS_CUDA must be 0, 1 or unset, got 'yes'"),
    ],
)
def test_impossible_cuda_build_is_one_sentence(setup_py, wanted, torch_cuda, toolkit, message):
    with pytest.raises(SystemExit, match=message) as error:
        setup_py.choose_cuda(wanted, torch_cuda, toolkit, has_sources=True)
    one_sentence(error.value)


@pytest.mark.parametrize(
    ("wanted", "torch_cuda", "toolkit", "has_sources", "version", "reason"),
    [
        (None, "13.0", "13.0", True, "13.0", "nvcc 13.0, torch CUDA 13.0"),
        ("1", "13.0", "13.2", True, "13.2", "nvcc 13.2"),
        (None, "13.0", None, True, None, "no nvcc was found"),
        (None, None, "13.0", True, None, "CPU build"),
        ("0", "13.0", "12.8", True, None, "FLOWOPS_CUDA=0"),
        (None, "13.0", "13.0", False, None, "no CUDA sources"),
    ],
)
def test_cuda_choice(setup_py, wanted, torch_cuda, toolkit, has_sources, version, reason):
    cuda = setup_py.choose_cuda(wanted, torch_cuda, toolkit, has_sources)
    assert cuda.version == version
    assert reason in cuda.reason


def test_nvcc_is_asked_for_its_release(setup_py, tmp_path):
    assert setup_py.nvcc_version(None) is None
    assert setup_py.nvcc_version(str(tmp_path)) is None
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    assert setup_py.nvcc_version(str(tmp_path)) == "13.0"


def test_toolkit_lies_where_nvcc_says(setup_py, monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho '#$ _HERE_=/opt/toolkit/bin' >&2\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    for given, found in (("", "/opt/toolkit"), ("/mine", "/mine")):
        monkeypatch.setenv("CUDA_HOME", given)
        setup_py.find_toolkit()
        assert os.environ["CUDA_HOME"] == found


def test_other_machines_build_the_baseline_alone(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py.platform, "machine", lambda: "aarch64")
    assert setup_py.cpu_capabilities() == ["DEFAULT"]


def test_wheel_requires_the_torch_it_was_built_against(setup_py, tmp_path):
    installed = Path(torch.__file__).parent
    major, minor = torch.__version__.split(".")[:2]
    assert setup_py.torch_requirement(torch.__version__, installed) == f"torch~={major}.{minor}.0"
    fetched = setup_py.torch_requirement("2.13.0+cpu", tmp_path)
    assert fetched == "torch==2.13.0" == sys.modules["flowops_build"].TORCH_PIN


def test_import_under_another_torch_names_both_and_the_cure():
    _library.check_torch_version("2.13.0+cpu", "2.13.1+cu130")
    with pytest.raises(ImportError, match=r"built for torch 2.13.0\+cpu but torch 2.14.0") as error:
        _library.check_torch_version("2.13.0+cpu", "2.14.0")
    assert "pip install" in one_sentence(error.value)


def test_import_under_another_cuda_names_both_and_the_cure():
    _library.check_cuda_version("13.0", "13.2")
    with pytest.raises(ImportError, match=r"built for CUDA 13.0 but torch has CUDA 12.6") as error:
        _library.check_cuda_version("13.0", "12.6")
    assert "pip install" in one_sentence(error.value)


def test_import_without_torch_names_the_cure():
    result = run_python("import sys; sys.modules['torch'] = None; import flowops")
    assert result.returncode == 1
    assert "ImportError: flowops needs torch, which is not installed" in result.stderr


def test_import_of_an_unbuilt_checkout_names_the_cure(monkeypatch):
    monkeypatch.setattr(_library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not built; run `pip install -e .`") as error:
        _library._load()
    one_sentence(error.value)


@pytest.mark.parametrize(
    ("running", "built", "chosen"),
    [
        ("AVX512", ["DEFAULT", "AVX2", "AVX512"], "AVX512"),
        ("AVX2", ["DEFAULT", "AVX2", "AVX512"], "AVX2"),
        ("AVX512", ["DEFAULT", "AVX2"], "AVX2"),
        ("NO AVX", ["DEFAULT", "AVX2", "AVX512"], "DEFAULT"),
        ("SVE256", ["DEFAULT"], "DEFAULT"),
    ],
)
def test_cpu_kernels_fit_the_machine(running, built, chosen):
    assert _library.choose_cpu_module(running, built) == chosen


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_each_instruction_set_loads(capability):
    if capability.upper() not in _library.info()["cpu_built"]:
        pytest.skip(f"this build has no {capability} kernels")
    code = (
        "import torch; from flowops import _library;"
        "print(_library.info()['cpu'], torch.backends.cpu.get_cpu_capability())"
    )
    used, torch_uses = run_python(code, ATEN_CPU_CAPABILITY=capability).stdout.split()
    assert used == torch_uses


def test_info_says_what_was_built():
    info = _library.info()
    assert info["torch_running"] == torch.__version__
    assert info["cpu"] in info["cpu_built"]
    assert bool(info["cuda_architectures"]) == (info["cuda_built"] is not None)
