"""Names of a library that have no layer here come from the library itself."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
import torch

CASES = [
    ("nflows", "LULinear", "Flow", "nflows.flows.Flow"),
    ("nflows", "LULinear", "StandardNormal", "nflows.distributions.StandardNormal"),
    ("normflows", "GlowBlock", "NormalizingFlow", "normflows.NormalizingFlow"),
    ("normflows", "GlowBlock", "Planar", "normflows.flows.Planar"),
    ("freia", "AllInOneBlock", "SequenceINN", "FrEIA.framework.SequenceINN"),
    ("freia", "AllInOneBlock", "HaarDownsampling", "FrEIA.modules.HaarDownsampling"),
    ("zuko", "GeneralCouplingTransform", "NSF", "zuko.flows.NSF"),
    ("residual_flows", "iResBlock", "ActNorm2d", "resflows.layers.ActNorm2d"),
    ("residual_flows", "LopLinear", "MaxMin", "resflows.layers.base.MaxMin"),
]
PACKAGES = {"freia": "FrEIA", "residual_flows": "resflows"}


@pytest.mark.parametrize(
    ("library", "ours", "theirs", "full"), CASES, ids=lambda value: value.replace(".", " ")
)
def test_names_of_nflows_normflows_FrEIA_resflows_and_zuko(
    library: str, ours: str, theirs: str, full: str
) -> None:
    pytest.importorskip(PACKAGES.get(library, library))
    compat = import_module(f"flowops.compat.{library}")
    assert getattr(compat, ours).__module__.startswith("flowops.compat")
    module, _, name = full.rpartition(".")
    assert getattr(compat, theirs) is getattr(import_module(module), name)
    with pytest.raises(AttributeError, match="has a name Nonsense"):
        compat.Nonsense  # noqa: B018
    with pytest.raises(ImportError):
        exec(f"from flowops.compat.{library} import Nonsense")
    assert not hasattr(compat, "__path_that_is_not__")


def test_normflows_spaces_are_this_module() -> None:
    pytest.importorskip("normflows")
    from flowops.compat import normflows as nf

    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [nf.flows.ActNorm(2)])
    assert type(flow.flows[0]) is nf.ActNorm
    flow.log_prob(torch.randn(5, 2))


def test_an_absent_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowops.compat import nflows

    monkeypatch.setitem(sys.modules, "nflows", None)
    monkeypatch.setitem(sys.modules, "nflows.transforms", None)
    with pytest.raises(AttributeError, match="one of nflows's, which is not installed"):
        nflows.Flow  # noqa: B018
