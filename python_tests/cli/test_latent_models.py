"""The models that are not flows, by the command: trained, judged, resumed and drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from flowops.cli.baselines import binary_baselines
from flowops.cli.objectives import objective_of
from flowops.cli.sampling import choose_device, load_run
from flowops.data import ImageData
from flowops.models import VAE, InfoMax, InfoMaxConfig, VAEConfig

from .test_resume import assert_same_run, interrupt_at

SMALL = ("--hidden", 8, "--latent", 3, "--batch-size", 8, "--threads", 1)
#: The words of a run, and the unit of its headline.
CASES = {
    "vae": (("vae",), "nats"),
    "vae conv": (("vae", "--network", "conv", "--depth", 1), "nats"),
    "vae vmf": (("vae", "--posterior", "vmf", "--importance", 3), "nats"),
    "vae gumbel": (("vae", "--posterior", "gumbel"), "nats"),
    "vae vq": (("vae", "--posterior", "vq"), "nats"),
    "vae gaussian": (("vae", "--likelihood", "gaussian", "--kl-warmup", 4), "bits_per_dim"),
    "cvae": (("cvae",), "nats"),
    "cluster_vae": (("cluster_vae", "--channels", 4, "--clusters", 3), "nats"),
    "vib": (("vib",), "bits"),
    "infomax": (("infomax", "--channels", 4), "loss"),
    "fvae": (("fvae", "--channels", 4, "--flow-hidden", 4, "--flow-steps", 2), "bits_per_dim"),
}
_NVAE = ("nvae", "--channels", 2, "--groups", 1, "--kl-warmup", 4, "--components", 2)
CASES |= {
    "nvae": (_NVAE, "nats"),
    "nvae mixture": ((*_NVAE, "--likelihood", "logistic_mixture", "--flow"), "bits_per_dim"),
}
CASES |= {
    "linear_ae": (("linear_ae",), "mse"),
    "ae": (("ae",), "mse"),
    "ae conv": (("ae", "--network", "conv", "--output", "bernoulli"), "mse"),
    "sparse_ae": (("sparse_ae", "--active", 2), "mse"),
    "stacked_ae": (("stacked_ae", "--depth", 2, "--layer-steps", 2), "mse"),
    "denoising_ae": (("denoising_ae",), "mse"),
}
WITHOUT_HIDDEN = ("linear_ae", "fvae", "nvae", "nvae mixture")


def words_of(case: str) -> tuple[object, ...]:
    small = SMALL[2:] if case in WITHOUT_HIDDEN else SMALL
    return (*CASES[case][0], *small)


@pytest.mark.parametrize("case", CASES)
def test_trained_judged_resumed_and_drawn(command, labelled, tmp_path, monkeypatch, case):
    words = ("train", *words_of(case), "--data", labelled, "--steps", 9, "--log-every", 3)
    words = (*words, "--eval-every", 3, "--checkpoint-every", 4, "--quiet", "--out")
    result = command(*words, tmp_path / "whole")
    assert result.status == 0, result.err
    unit = CASES[case][1]
    figure = result.json[f"test_{unit}"]
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [3, 6, 9, 9]
    assert all(np.isfinite([row[f"train_{unit}"], row[f"test_{unit}"]]).all() for row in rows[:3])
    again = command("evaluate", "--run", tmp_path / "whole", "--quiet").json
    assert again[f"test_{unit}"] == figure
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_optimise", 6)
        assert command(*words, tmp_path / "cut").status == 130
    assert command("train", "--resume", "--out", tmp_path / "cut", "--quiet").status == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    grid = tmp_path / "grid.png"
    drawn = command("sample", "--run", tmp_path / "whole", "--n", 4, "--out", grid, "--quiet")
    assert drawn.status == 0, drawn.err
    assert grid.stat().st_size > 0


def test_more_codes_tighten_the_bound(command, labelled, tmp_path):
    words = ("train", "vae", *SMALL, "--data", labelled, "--steps", 60, "--lr", 0.01, "--quiet")
    loose = command(*words, "--out", tmp_path / "run").json
    tight = command("evaluate", "--run", tmp_path / "run", "--importance-samples", 64, "--quiet")
    assert tight.json["test_nats"] < loose["test_nats"]
    assert tight.json["bound"] == "importance-weighted bound, 64 codes, binarised once"
    # An honest bound beats independent pixels here, the class being the code, but not the entropy.
    least, independent = sorted(loose["baselines"].values())
    assert least < tight.json["test_nats"] < independent


def test_the_class_moves_the_samples_of_a_cvae(command, labelled, tmp_path):
    words = ("train", "cvae", *SMALL, "--data", labelled, "--steps", 200, "--lr", 0.02, "--quiet")
    assert command(*words, "--out", tmp_path / "run").status == 0
    model, config, _ = load_run(tmp_path / "run", choose_device("cpu"))
    assert config.model_options["classes"] == 2
    dark, bright = (model.sample((64,), torch.full((64,), c)).mean() for c in (0, 1))
    assert dark < 0.3 < 0.6 < bright


def test_infomax_asks_for_two_images_at_a_time(command, images, tmp_path):
    words = ("train", "infomax", "--data", images, "--batch-size", 1, "--out", tmp_path / "run")
    result = command(*words)
    assert result.status == 2
    assert "infomax needs at least 2 images in a batch" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 258, 513])
def test_no_image_is_judged_alone_and_none_left_out(count):
    torch.manual_seed(0)
    model = InfoMax(InfoMaxConfig((1, 4, 4), latent=2, channels=2, hidden=4))
    images = np.random.default_rng(0).integers(0, 5, (count, 1, 4, 4)).astype(np.uint8)
    objective = objective_of(model, 5)
    seen = [x for _, x, _ in objective._batches(model, images, None)]
    assert np.array_equal(torch.cat(seen).mul(4).round().numpy(), images)
    assert min(len(x) for x in seen) >= min(2, count)


def test_labels_are_asked_for(command, images, tmp_path):
    result = command("train", "cvae", *SMALL, "--data", images, "--out", tmp_path / "run")
    assert result.status == 2
    assert "must hold labels" in result.err
    assert not (tmp_path / "run").exists()


def test_baselines_of_binary_pixels():
    train = np.array([0, 0, 4, 4], np.uint8).reshape(4, 1, 1, 1)
    test = np.array([0, 2], np.uint8).reshape(2, 1, 1, 1)
    least, independent = sorted(
        binary_baselines(ImageData("toy", train, test, 5, "as given")).values()
    )
    assert least == pytest.approx(np.log(2) / 2)  # one sure pixel, one fair coin
    assert independent == pytest.approx(np.log(2))


def test_the_figure_of_an_objective_is_the_bound_of_its_images():
    # Pixels that are 0 or 1 for sure: binarisation and dequantisation have no say in nats.
    torch.manual_seed(0)
    vae = VAE(VAEConfig((1, 2, 2), latent=2, hidden=4)).double()
    images = np.random.default_rng(0).integers(0, 2, (300, 1, 2, 2)).astype(np.uint8)
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.zero_()  # posterior = prior, so that the weights are likelihoods alone
        vae.decoder.mlp.layers[-1].weight.zero_()  # which no longer depend on the code
        expected = -vae.importance_bound(torch.from_numpy(images).double(), samples=1).mean()
    figures = objective_of(vae, 2).judge(vae, images, None, samples=3)
    assert figures == {"nats": pytest.approx(expected.item(), rel=1e-12)}
    assert vae.training
