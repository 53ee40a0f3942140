"""Programs written with other libraries give the same results when flowops runs the layers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from flowops import accelerate
from flowops.compat import patch

STEPS = 8


def posterior(library: str, kind: str, swapped: bool) -> tuple[Any, list[float], Tensor]:
    """An inference with sbi, which builds its flows itself."""
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(3), 2 * torch.ones(3))
    theta = prior.sample((200,))
    inside: AbstractContextManager[Any] = patch(library) if swapped else nullcontext()
    with inside as report:
        estimator = posterior_nn(kind, hidden_features=16, num_transforms=2)
        inference = NPE(prior, density_estimator=estimator, show_progress_bars=False)
        inference.append_simulations(theta, theta + 0.3 * torch.randn_like(theta))
        density = inference.train(max_num_epochs=3)
    built = inference.build_posterior(density)
    torch.manual_seed(1)
    samples = built.sample((20,), x=torch.zeros(1, 3), show_progress_bars=False)
    return report, inference.summary["validation_loss"], samples


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zuko_nsf", "zuko_maf", "nsf", "maf"])
def test_posteriors_of_sbi_with_zuko_and_nflows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sbi")
    monkeypatch.chdir(tmp_path)  # where it writes its logs
    library = "zuko" if kind.startswith("zuko") else "nflows"
    _, losses, samples = posterior(library, kind, swapped=False)
    report, our_losses, our_samples = posterior(library, kind, swapped=True)
    assert report.swapped
    assert our_losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(our_samples, samples, rtol=1e-3, atol=1e-3)


def losses_of(model: nn.Module, loss: Any, swapped: bool) -> tuple[Any, list[float]]:
    """Train some steps from a fixed seed."""
    report = accelerate(model) if swapped else None
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    torch.manual_seed(1)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        found.append(value.item())
    return report, found


def compare(build: Any, loss: Any, layers: int) -> None:
    runs = []
    for swapped in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        runs.append(losses_of(build().double(), loss, swapped))
    assert len(runs[1][0].swapped) >= layers
    assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-6)
    assert runs[0][1][-1] != pytest.approx(runs[0][1][0], rel=1e-3)


def test_glow_of_normflows() -> None:
    nf = pytest.importorskip("normflows")

    def build() -> nn.Module:
        flows = [*(nf.flows.GlowBlock(12, 16) for _ in range(3)), nf.flows.Squeeze()]
        return nf.NormalizingFlow(nf.distributions.DiagGaussian((12, 4, 4)), flows)

    def loss(model: Any) -> Tensor:
        return model.forward_kld(torch.rand(4, 3, 8, 8).double())

    compare(build, loss, layers=3)


class Subnet(nn.Sequential):
    """The network of a coupling."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(nn.Linear(channels_in, 32), nn.ReLU(), nn.Linear(32, channels_out))


def test_conditional_flow_of_FrEIA() -> None:
    framework = pytest.importorskip("FrEIA.framework")
    modules = pytest.importorskip("FrEIA.modules")

    def build() -> nn.Module:
        flow = framework.SequenceINN(6)
        for _ in range(4):
            flow.append(modules.AllInOneBlock, cond=0, cond_shape=(3,), subnet_constructor=Subnet)
        return flow

    def loss(model: Any) -> Tensor:
        label = torch.randn(64, 3).double()
        z, logdet = model(torch.cat([label, label.square()], 1), [label])
        return (z.square().sum(1) / 2 - logdet).mean()

    compare(build, loss, layers=4)


def test_gan_with_the_spectral_norm_of_torch() -> None:
    def build() -> nn.Module:
        sizes = [(2, 32), (32, 32), (32, 1)]
        layers = [spectral_norm(nn.Linear(*size)) for size in sizes]
        critic = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        return nn.ModuleDict({"critic": critic, "generator": nn.Linear(4, 2)})

    def loss(model: Any) -> Tensor:
        real, fake = torch.randn(64, 2).double(), model["generator"](torch.randn(64, 4).double())
        critic = model["critic"]
        return critic(fake).mean() - critic(real).mean() + critic(fake).square().mean()

    compare(build, loss, layers=3)


def test_encoder_of_fast_transformers() -> None:
    builders = pytest.importorskip("fast_transformers.builders")
    masking = pytest.importorskip("fast_transformers.masking")

    def build() -> nn.Module:
        return builders.TransformerEncoderBuilder.from_kwargs(
            n_layers=2, n_heads=2, query_dimensions=8, value_dimensions=8,
            feed_forward_dimensions=32, attention_type="linear", dropout=0.0,
        ).get()  # fmt: skip

    def loss(model: Any) -> Tensor:
        x = torch.randn(4, 9, 16).double()
        lengths = masking.LengthMask(torch.tensor([9, 7, 5, 9]))
        return (model(x, length_mask=lengths) - x.roll(1, 1)).square().mean()

    compare(build, loss, layers=2)
