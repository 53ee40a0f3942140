"""Every case of the suite passes its gate, and so do the packages that are installed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.case import Case, Model, ModelCase, Rival
from benchmarks.cases import glow, linear_transformer, realnvp
from benchmarks.models import run_model_case, trainee
from benchmarks.operators import Variant, exact_outputs, gate, rivals_of, run_case
from benchmarks.run import describe, main, model_cases, op_cases, sweeps
from benchmarks.settings import Settings
from flowops import ops

CPU = torch.device("cpu")
QUICK = Settings(CPU, compile=False, budget=0.01)
BY_SIZE = sorted(op_cases(), key=lambda case: -case.traffic)
SMALLEST = {case.op: case for case in BY_SIZE}
CONTESTED = {case.op: case for case in BY_SIZE if case.rivals}
RIVALS = [(case, rival) for case in CONTESTED.values() for rival in case.rivals]


def double(**changes) -> Case:
    made = Case(
        "double", "4", lambda: [torch.arange(1.0, 5.0)], lambda x: [2 * x], lambda x: [x + x], 32
    )
    return replace(made, **changes)


@pytest.mark.parametrize("case", SMALLEST.values(), ids=lambda case: case.op)
def test_ours_passes_the_gate(case):
    inputs = case.inputs()
    assert gate(case, Variant(case.ours, inputs), exact_outputs(case, inputs))[1] == ""


@pytest.mark.parametrize(
    ("case", "rival"), RIVALS, ids=[f"{case.op}-{rival.package}" for case, rival in RIVALS]
)
def test_rival_runs_and_agrees(case, rival):
    pytest.importorskip(rival.package)
    if "cpu" not in rival.devices:
        pytest.skip("this package needs a GPU")
    inputs = case.inputs()
    alone = replace(case, rivals=(rival,))
    variants, remarks = rivals_of(alone, inputs, exact_outputs(case, inputs), CPU)
    assert remarks["left_out"] == {}
    assert list(variants) == [rival.package]


def test_cases_are_of_ops_and_told_apart():
    assert {case.op for case in op_cases()} <= set(vars(ops))
    assert len({(case.op, case.name) for case in op_cases()}) == len(op_cases())


def test_a_wrong_kernel_gets_no_figures():
    result = run_case(double(ours=lambda x: [x + x + 1e-3]), QUICK)
    assert "error" in result["failed"]
    assert "forward" not in result
    assert "FAILED" in describe(result)


def test_a_kernel_that_gives_nan_gets_no_figures():
    assert "failed" in run_case(double(ours=lambda x: [x / 0 * 0]), QUICK)


def test_a_case_is_timed_and_counted():
    result = run_case(double(flops=4), QUICK)
    assert set(result["forward"]) == {"eager", "ours", "copy", "gemm"}
    assert set(result["forward_backward"]) == {"eager", "ours"}
    assert result["memory"]["ours"]["kept"] == 16
    assert {"forward", "forward_backward"} & set(describe(result).split())


def test_ours_alone_leaves_all_others_out():
    result = run_case(double(), replace(QUICK, ours_only=True))
    assert set(result["forward"]) == {"ours", "copy"}


def test_rivals_are_held_to_the_gate():
    def rival(package, function, **more):
        return Rival(package, lambda: function, **more)

    def explode(x):
        raise RuntimeError("no such thing\nin a file")

    rivals = (
        rival("torch", lambda x: [-2 * x], adapt=lambda x: [-x]),
        rival("numpy", lambda x: [3 * x], differs="it triples"),
        rival("json", lambda x: [3 * x]),
        rival("math", explode),
        rival("no_such_package", lambda x: [2 * x]),
        rival("ast", lambda x: [2 * x], devices=("cuda",)),
    )
    case = double(rivals=rivals)
    variants, remarks = rivals_of(case, case.inputs(), exact_outputs(case, case.inputs()), CPU)
    assert list(variants) == ["torch", "numpy"]
    assert remarks["not_compared"] == {"numpy": "it triples"}
    assert remarks["absent"] == ["no_such_package"]
    assert "above" in remarks["left_out"]["json"]
    assert remarks["left_out"]["math"] == "RuntimeError: no such thing"
    assert "no_such_package" in describe({"op": "a", "case": "b", **remarks})


@pytest.mark.parametrize("layer", [realnvp.Coupling(), glow.Step(4, 8)])
def test_eager_layers_invert(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(3, 32) if isinstance(layer, realnvp.Coupling) else torch.randn(3, 4, 4, 4)
    assert torch.allclose(layer.inverse(layer(x)[0]), x, atol=1e-4)


def test_eager_decoding_is_that_of_the_whole_sequence():
    attention = linear_transformer.EagerAttention()
    x, state, steps = torch.randn(2, 128, 256), None, []
    for i in range(128):
        y, state = attention.step(x[:, i : i + 1], state)
        steps.append(y)
    assert torch.allclose(torch.cat(steps, 1), attention(x), atol=1e-5)


def square(parameter: torch.Tensor) -> Model:
    module = nn.Module()
    module.weight = nn.Parameter(parameter.clone())
    return Model(module, lambda x: (module.weight - x).square().sum(), lambda: module.weight + 1)


def tiny(models) -> ModelCase:
    return ModelCase("square", "3", lambda: (torch.ones(3),), models)


def start(x):
    return square(x + 1)


def test_models_are_timed_and_counted():
    models = {"eager": start, "ours": start, "no_such_package": start}
    result = run_model_case(tiny(models=models), QUICK)
    assert result["absent"] == ["no_such_package"]
    assert set(result["step"]) == set(result["sample"]) == {"eager", "ours"}
    assert result["calls"]["ours"] == result["calls"]["eager"] > 3
    assert result["memory"]["ours"]["peak"] >= 12


def test_a_model_that_does_not_learn_gets_no_figures():
    # Begins where the loss is least.
    assert "loss" in run_model_case(tiny(models={"ours": square}), QUICK)["failed"]
    result = run_model_case(tiny(models={"eager": square, "ours": start}), QUICK)
    assert set(result["step"]) == {"ours"}
    assert "loss" in result["left_out"]["eager"]


def test_autocast_reaches_the_loss():
    seen = []
    model = Model(nn.Linear(2, 2), lambda x: seen.append(torch.is_autocast_enabled("cpu")) or x)
    trainee(model, [torch.ones(())], autocast=True).loss()
    trainee(model, [torch.ones(())]).loss()
    assert seen == [True, False]


def test_models_and_sweeps_have_ours_beside_another():
    for case in model_cases():
        assert "ours" in case.models
        assert len(case.models) > 1
        assert set(case.compiled) <= set(case.models)
    for sweep in sweeps():
        assert sorted(sweep.sizes) == list(sweep.sizes)
        assert sweep.case_of(sweep.sizes[0]).op == sweep.op


@pytest.mark.parametrize(
    "arguments", [["--op", "no_op"], ["--rounds", "0", "--base", "none"], ["--parts", "all"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_suite_writes_its_report_and_prints_its_table(tmp_path, capsys):
    threads = torch.get_num_threads()
    out = tmp_path / "r.json"
    options = ["--op", "gaussian_rsample", "--parts", "ops", "--no-compile", "--budget", "0.01"]
    assert main([*options, "--threads", str(threads), "--out", str(out)]) == 0
    assert "| `gaussian_rsample` |" in capsys.readouterr().out
    assert '"commit"' in out.read_text()
