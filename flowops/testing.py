"""What tests of flowops, and of code built on it, share: tolerances, oracles, contract checks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowops.distributions import Flow
from flowops.nn.base import Bijector

#: ``(rtol, atol)`` by storage dtype, for one op against its float64 reference.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (2e-6, 2e-6),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (2e-2, 2e-2),
}


def assert_close(
    actual: Tensor, expected: Tensor, *, dtype: torch.dtype, factor: float = 1.0
) -> None:
    """Compare with the project's tolerance for results computed from ``dtype`` inputs.

    ``factor`` widens it, for sums over many terms; give the reason where it is used.
    """
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=rtol * factor, atol=atol * factor, equal_nan=True
    )


def jacobian_logdet(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return log|det d function(x)[i] / d x[i]| per sample, in float64, from autograd alone.

    One sample at a time, so that a leak between samples shows as a wrong value.
    """
    values = []
    for row in x.double().split(1):
        jacobian = torch.autograd.functional.jacobian(function, row)
        values.append(torch.linalg.slogdet(jacobian.reshape(row.numel(), row.numel())).logabsdet)
    return torch.stack(values)


@torch.no_grad()
def randomize_(
    module: nn.Module, *, generator: torch.Generator | None = None, std: float = 0.1
) -> nn.Module:
    """Move every parameter and running statistic of a module off its initial value, in place.

    Layers begin at zeros and identities, where wrong signs, transposes and masks do not show: test
    them elsewhere. Normal noise of standard deviation ``std`` is added to each parameter.

    Args:
        module: the module.
        generator: where the noise is drawn from.
        std: of the noise.

    Returns:
        The module.
    """
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(std * noise.to(parameter))
    for name, buffer in module.named_buffers():
        noise = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_mean"):
            buffer.add_(std * noise.to(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(torch.exp(std * noise).to(buffer))
    return module


def check_bijector(
    bijector: Bijector | Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    atol: float = 1e-10,
) -> None:
    """Check the whole contract of :class:`flowops.nn.Bijector` on a batch, in float64.

    Per sample and in both directions the log-determinant must be that of the autograd Jacobian;
    forward and inverse must undo each other, their log-determinants too; an incoming
    log-determinant must be added; a sample's result must not depend on its batch; an empty batch
    must pass. Call it on randomised parameters (:func:`randomize_`), in evaluation mode.

    Args:
        bijector: the map, in float64. Of a :class:`flowops.distributions.Flow`, its transform.
        x: data, float64, shape ``(B, ...)``, with B at least 2 and few elements a sample: the
            Jacobian is dense.
        context: one vector (or label) a sample, or None.
        atol: absolute tolerance of all comparisons.

    Raises:
        AssertionError: if a check fails; the message says which.
    """
    z, logdet = bijector(x, context)
    back, logdet_back = bijector.inverse(z, context)
    _expect(
        logdet.dtype == torch.float64 and logdet.shape == (len(x),), "logdet must be (B,) float64"
    )
    _expect_close(back, x, atol, "inverse(forward(x)) must be x")
    _expect_close(logdet_back, -logdet, atol, "the log-determinants must cancel")
    _expect_close(bijector(back, context)[0], z, atol, "forward(inverse(z)) must be z")
    for i in range(len(x)):
        row, z_row = x[i : i + 1], z[i : i + 1].detach()
        one = None if context is None else context[i : i + 1]
        truth = jacobian_logdet(lambda v, c=one: bijector(v, c)[0], row)
        _expect_close(logdet[i : i + 1], truth, atol, "forward's logdet must be the Jacobian's")
        truth = jacobian_logdet(lambda v, c=one: bijector.inverse(v, c)[0], z_row)
        _expect_close(
            logdet_back[i : i + 1], truth, atol, "inverse's logdet must be the Jacobian's"
        )
        alone, logdet_alone = bijector(row, one)
        _expect_close(alone, z[i : i + 1], 1e-12, "a sample must not depend on its batch")
        _expect_close(
            logdet_alone, logdet[i : i + 1], 1e-12, "a logdet must not depend on its batch"
        )
    empty = None if context is None else context[:0]
    z_empty, logdet_empty = bijector(x[:0], empty)
    _expect(z_empty.shape == z[:0].shape and logdet_empty.shape == (0,), "an empty batch must pass")
    _expect(
        bijector.inverse(z_empty, empty)[0].shape == x[:0].shape, "an empty batch must pass back"
    )
    if isinstance(bijector, Bijector):
        incoming = torch.linspace(-1, 1, len(x), dtype=x.dtype)
        total = bijector(x, context, logdet=incoming)[1]
        _expect_close(total, logdet + incoming, atol, "an incoming logdet must be added")
        total = bijector.inverse(z, context, logdet=incoming)[1]
        _expect_close(total, logdet_back + incoming, atol, "inverse must add an incoming logdet")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _expect_close(actual: Tensor, expected: Tensor, atol: float, message: str) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=atol, msg=lambda details: f"{message}\n{details}"
    )
