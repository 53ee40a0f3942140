"""What the models with codes learn of the digits, in a minute or so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flowops.cli import main
from flowops.data import load_images
from flowops.models import VIB, VIBConfig

for _package in ("safetensors", "tqdm", "PIL", "matplotlib", "sklearn"):
    pytest.importorskip(_package)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def trained(folder: Path, capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    out = folder / "-".join(str(word).strip("-") for word in words)
    command = ["train", *map(str, words), "--threads", "1", "--quiet", "--out", str(out)]
    capsys.readouterr()
    assert main(command) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vae", "cvae", "nvae"])
def test_bounds_lie_between_the_entropy_and_independent_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    result = trained(tmp_path, capsys, model)
    least, independent = sorted(result["baselines"].values())
    assert least < result["test_nats"] < independent - 2


def test_a_linear_auto_encoder_comes_near_pca_and_never_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = trained(tmp_path, capsys, "linear_ae", "--latent", 10)
    images = load_images("digits").train.reshape(1500, -1) / 16
    centred = torch.from_numpy(images - images.mean(0))
    least = torch.linalg.svdvals(centred)[10:].square().sum().item() / centred.numel()
    assert least <= result["training_mse"] < 1.01 * least


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ae", "denoising_ae", "sparse_ae", "stacked_ae"])
def test_auto_encoders_reconstruct(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    result = trained(tmp_path, capsys, model)
    assert result["test_mse"] < 0.3 * result["baselines"]["the mean image"]


@pytest.mark.slow
def test_a_flow_over_the_codes_improves_the_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("fvae", "--steps", 1000)
    flow = trained(tmp_path, capsys, *words)["test_bits_per_dim"]
    vae = trained(tmp_path, capsys, *words, "--flow-steps", 0)["test_bits_per_dim"]
    assert flow < vae


def test_a_higher_price_of_information_lowers_the_rate() -> None:
    data = load_images("digits", labels=True)
    assert data.train_labels is not None
    assert data.test_labels is not None
    x, test = (torch.from_numpy(part).float() / 16 for part in (data.train, data.test))
    labels, test_labels = map(torch.from_numpy, (data.train_labels, data.test_labels))
    rates, accuracies = [], []
    for beta in (1e-5, 1e-3, 1.0):
        torch.manual_seed(0)
        vib = VIB(VIBConfig((1, 8, 8), latent=16, hidden=128, beta=beta, classes=10))
        optimizer = torch.optim.Adam(vib.parameters(), lr=2e-3)
        for _ in range(600):
            batch = torch.randint(len(x), (100,))
            loss = vib.loss(x[batch], labels[batch]).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        vib.eval()
        with torch.no_grad():
            rates.append(vib.rate(test).mean().item())
            found = vib.predict(test).argmax(1)
        accuracies.append((found == test_labels).float().mean().item())
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] < 0.1
    assert min(accuracies[:2]) > 0.95
    assert accuracies[2] < 0.2  # a code of nothing: chance
