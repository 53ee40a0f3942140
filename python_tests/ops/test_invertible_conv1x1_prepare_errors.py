"""invertible_conv1x1_lu and _full refuse lists that do not fit, each in one clear sentence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowops import ops

Layers = dict[str, list[Tensor]]

M, V = torch.eye(3), torch.ones(3)
GOOD: Layers = {
    "lower": [M, M],
    "upper": [M, M],
    "log_s": [V, V],
    "sign": [V, V],
    "permutation": [torch.arange(3)] * 2,
    "actnorm_bias": [V, V],
    "actnorm_log_scale": [V, V],
}


def prepare(layers: Layers) -> None:
    lists = list(layers.values())
    ops.invertible_conv1x1_lu(*lists[:5], actnorm_bias=lists[5], actnorm_log_scale=lists[6])


BAD: dict[str, tuple[Layers, str]] = {
    "nothing": ({k: [] for k in GOOD}, "lower must hold at least one layer, got an empty list"),
    "empty": ({"lower": []}, "lower must hold at least one layer, got an empty list"),
    "square": ({"lower": [M, M[:2]]}, r"lower\[1\] must be a square matrix, got shape \[2, 3\]"),
    "dtype": ({"lower": [M.long()] * 2}, r"lower\[0\] must be floating-point, got Long"),
    "mixed": ({"lower": [M, M.double()]}, r"lower\[1\] must be Float, got Double"),
    "count": ({"upper": [M]}, "upper must have one tensor a layer, 2, got 1"),
    "shape": ({"upper": [M, torch.eye(4)]}, r"upper\[1\] must have shape \[3, 3\], got \[4, 4\]"),
    "log_s": ({"log_s": [V, M]}, r"log_s\[1\] must have shape \[3\], got \[3, 3\]"),
    "log_s_dtype": ({"log_s": [V, V.half()]}, r"log_s\[1\] must be Float, got Half"),
    "sign": ({"sign": [V[:2], V]}, r"sign\[0\] must have shape \[3\], got \[2\]"),
    "permutation": ({"permutation": [V, V]}, r"permutation\[0\] must be Long, got Float"),
    "actnorm": (
        {"actnorm_bias": []},
        "actnorm_bias and actnorm_log_scale must be given together, got 0 and 2",
    ),
    "actnorm_shape": (
        {"actnorm_bias": [V, V[:1]]},
        r"actnorm_bias\[1\] must have shape \[3\], got \[1\]",
    ),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    layers = {k: [t.to(device) for t in ts] for k, ts in (GOOD | changed).items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="invertible_conv1x1_lu: " + message),
    ):
        prepare(layers)


FULL: Layers = {key: GOOD[key] for key in ("actnorm_bias", "actnorm_log_scale")}
BAD_FULL: dict[str, tuple[Layers, str]] = {
    "nothing": (
        {"weight": [], "actnorm_bias": [], "actnorm_log_scale": []},
        "weight must hold at least one layer, got an empty list",
    ),
    "empty": ({"weight": []}, "weight must hold at least one layer, got an empty list"),
    "square": ({"weight": [M, M[:2]]}, r"weight\[1\] must be a square matrix, got shape \[2, 3\]"),
    "vector": ({"weight": [V, M]}, r"weight\[0\] must be a square matrix, got shape \[3\]"),
    "dtype": ({"weight": [M.long()] * 2}, r"weight\[0\] must be floating-point, got Long"),
    "mixed": ({"weight": [M, M.double()]}, r"weight\[1\] must be Float, got Double"),
    "actnorm": (
        {"actnorm_log_scale": []},
        "actnorm_bias and actnorm_log_scale must be given together, got 2 and 0",
    ),
    "count": (
        {"actnorm_bias": [V], "actnorm_log_scale": [V]},
        "actnorm_bias must have one tensor a layer, 2, got 1",
    ),
    "shape": ({"actnorm_bias": [V, V[:1]]}, r"actnorm_bias\[1\] must have shape \[3\], got \[1\]"),
    "actnorm_dtype": (
        {"actnorm_log_scale": [V, V.half()]},
        r"actnorm_log_scale\[1\] must be Float, got Half",
    ),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD_FULL)
def test_bad_full_input_is_one_clear_error(
    case: str, inference: bool, device: torch.device
) -> None:
    changed, message = BAD_FULL[case]
    lists = {"weight": [M, M], **FULL, **changed}
    layers = {k: [t.to(device) for t in ts] for k, ts in lists.items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match=rf"^invertible_conv1x1_full: {message}$"),
    ):
        ops.invertible_conv1x1_full(layers.pop("weight"), **layers)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("index", [[0, 1, 1], [0, 1, 3], [-1, 0, 1]])
def test_bad_permutation_is_refused(
    index: list[int], inference: bool, device: torch.device, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--device") != "cpu":
        pytest.skip("reading the values would wait for the GPU")
    layers = GOOD | {"permutation": [torch.tensor(index), torch.arange(3)]}
    message = r"^invertible_conv1x1_lu: permutation\[0\] must hold each of 0 to 2 once, got .*$"
    with torch.inference_mode(inference), pytest.raises(ValueError, match=message):
        prepare(layers)
