"""The sampling layer: what it splits, its forms, training a VAE-like loss, state and errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from flowops import nn, ops


@pytest.mark.parametrize("form", ["logvar", "log_std", "std", "softplus"])
@pytest.mark.parametrize("shape", [(5, 6), (2, 8, 3, 4)])
def test_is_the_op_on_the_halves(form: str, shape: tuple[int, ...]) -> None:
    params, prior = (torch.randn(2, *shape).abs() + 0.1).unbind()
    for residual in (False, True):
        layer = nn.GaussianRsample(form=form, residual=residual)
        z, kl = layer(params, prior, generator=torch.Generator().manual_seed(1))
        mean, scale = params.chunk(2, 1)
        expected = ops.gaussian_rsample_kl(
            mean, scale, form=form, prior=prior.chunk(2, 1), residual=residual,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        assert torch.equal(z, expected[0])
        assert torch.equal(kl, expected[1])


def test_does_not_concatenate_gradients() -> None:
    params = torch.randn(4, 6, requires_grad=True)
    z, kl = nn.GaussianRsample()(params)
    # One step from the results to params.
    assert z.grad_fn is kl.grad_fn
    leaves = [node for node, _ in z.grad_fn.next_functions if node is not None]
    assert [node.variable for node in leaves] == [params]


def test_fits_a_posterior() -> None:
    # Maximising E log N(x; z, s^2) - KL has the exact posterior N(x / (1 + s^2), s^2 / (1 + s^2)).
    x, variance = torch.tensor([[1.5], [-0.5]]), 0.25
    params = torch.zeros(2, 2, requires_grad=True)
    layer, optimiser = nn.GaussianRsample(), torch.optim.Adam([params], lr=0.05)
    for _ in range(400):
        z, kl = layer(params.repeat_interleave(256, 0))
        likelihood = -0.5 * (z - x.repeat_interleave(256, 0)).square().sum(1) / variance
        optimiser.zero_grad()
        (kl - likelihood).mean().backward()
        optimiser.step()
    mean, logvar = params.detach().chunk(2, 1)
    torch.testing.assert_close(mean, x / (1 + variance), rtol=0, atol=0.05)
    expected = torch.full_like(logvar, variance / (1 + variance))
    torch.testing.assert_close(logvar.exp(), expected, rtol=0.1, atol=0)


def test_copies_and_pickles() -> None:
    layer = nn.GaussianRsample(form="softplus", residual=True)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(copied) == repr(layer) == "GaussianRsample(form='softplus', residual=True)"
    assert not layer.state_dict()


def test_compiles_whole() -> None:
    layer = torch.compile(nn.GaussianRsample(), fullgraph=True, backend="aot_eager")
    params = torch.randn(4, 6, requires_grad=True)
    torch.manual_seed(0)
    z, kl = layer(params)
    (z.sum() + kl.sum()).backward()
    torch.manual_seed(0)
    assert torch.equal(z, nn.GaussianRsample()(params)[0])


def test_errors_are_clear() -> None:
    with pytest.raises(
        ValueError, match=r"GaussianRsample: form must be one of 'logvar', .*got 'x'"
    ):
        nn.GaussianRsample(form="x")
    with pytest.raises(ValueError, match=r"GaussianRsample: params must have shape .*got \[2, 5\]"):
        nn.GaussianRsample()(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"GaussianRsample: prior must have shape .*got \[3\]"):
        nn.GaussianRsample()(torch.zeros(2, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="gaussian_rsample: prior must be given for the residual"):
        nn.GaussianRsample(residual=True)(torch.zeros(2, 4))
