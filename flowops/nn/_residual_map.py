"""Maps x + g(x): the network held still, the inverse, and a log-determinant as one graph node."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowops.nn._fixed_point import Step, fixed_point, sizes
from flowops.nn._replay import Replay
from flowops.nn.base import gradients, zeros_logdet
from flowops.nn.residual_logdet import neumann_surrogate

_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 1e-2,
    torch.bfloat16: 3e-2,
}

#: Maps network and x, without a graph, to g(x), the log-determinants, the random vectors v and the
#: vectors w of :func:`flowops.nn.residual_logdet.series`; one v and w a probe.
Estimate = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


@contextmanager
def steady(network: nn.Module, device: torch.device) -> Generator[Replay]:
    """Evaluate a network any number of times with the weights of one, at full precision."""
    replay, graph = Replay(network), torch.is_grad_enabled()
    with (
        torch.inference_mode(mode=False),  # which refuses the derivatives that values need
        torch.set_grad_enabled(graph),
        torch.autocast(device.type, enabled=False),
        replay.recording(),
        parametrize.cached(),
    ):
        yield replay


def invert(
    name: str, network: nn.Module, z: Tensor, *, tolerance: float | None, max_iterations: int
) -> Tensor:
    """Return the x of ``z = x + network(x)``, with the gradients of the implicit function theorem.

    Raises:
        RuntimeError: If the fixed point is not reached, or the gradient's is not.
    """

    def iterate(step: Step, start: Tensor, scale: Tensor) -> Tensor:
        settled = _TOLERANCES[start.dtype] if tolerance is None else tolerance
        return fixed_point(
            name, step, start, scale, tolerance=settled, max_iterations=max_iterations
        )

    first = z - network(z)  # with a graph, which cached weights of all steps then have
    x = iterate(lambda x, rows: z[rows] - network(x[rows]), first, sizes(z).clamp(min=1))
    if not first.requires_grad:
        return x
    # The graph of one step, from which a second fixed point makes the gradient of all.
    point = x.requires_grad_()
    g = network(point)

    def products(u: Tensor) -> Tensor:
        return torch.autograd.grad(g, point, u, retain_graph=True)[0]

    def solve(grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{name}: gradients of the inverse must be taken without create_graph, for its "
                "backward pass has no graph"
            )
        return iterate(lambda u, rows: grad[rows] - products(u)[rows], grad, sizes(grad))

    x = z - g
    x.register_hook(solve)
    return x


def neumann(name: str, replay: Replay, x: Tensor, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """Return g and the log-determinants, as one node that keeps nothing that grows with terms.

    The gradient of a log-determinant is that of the mean of :math:`w^T J v` over the probes.

    Raises:
        RuntimeError: In the backward pass, under ``create_graph``.
    """
    return _Neumann.apply(_Call(name, replay, estimate), x, *replay.tensors)  # type: ignore[return-value]


def differentiable(x: Tensor) -> Tensor:
    """Return ``x`` as something that products with J can be taken for.

    They must not run the hooks of x itself, such as that of :func:`invert`.
    """
    if x.requires_grad:
        return x.view_as(x)
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


@dataclass(frozen=True)
class _Call:
    name: str
    replay: Replay
    estimate: Estimate


class _Neumann(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        g, value, probes, vectors = call.estimate(call.replay.module, x)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, probes, vectors, *tensors)
        return g, value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        call: _Call = ctx.call
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{call.name}: gradients must be taken without create_graph, for this backward "
                "pass has no graph"
            )
        x, probes, vectors, *tensors = ctx.saved_tensors
        x = x.detach().requires_grad_()
        wanted = ctx.needs_input_grad[2:]
        leaves = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
        with (
            call.replay.as_recorded(leaves),
            torch.autocast(x.device.type, enabled=False),
            torch.enable_grad(),
        ):
            g = call.replay.module(x)
            value = zeros_logdet(x)
            if grads[1] is not None:
                for probe, vector in zip(probes, vectors, strict=True):
                    value = value + neumann_surrogate(g, x, probe, vector) / len(probes)
        found = iter(gradients((g, value), [x, *(t for t in leaves if t.requires_grad)], grads))
        return None, next(found), *(next(found) if w else None for w in wanted)
