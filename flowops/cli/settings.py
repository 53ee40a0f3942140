"""Settings of a training run: option table, defaults and content of config.json in one place."""

from __future__ import annotations

import math
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal

from flowops.cli.errors import CommandError

DEFAULT_MODEL = "glow"
DEFAULT_DATA = "digits"

# The data give the shape, classes and values; images come without other context.
_NOT_OPTIONS = frozenset({"event_shape", "context_features", "classes", "condition", "values"})


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainSettings:
    """What ``flowops train`` can be told beside the model's own options; see each field's help."""

    data: str = _option(
        DEFAULT_DATA, "digits, fashion-mnist, or a path (.npy .npz IDX CIFAR-binary, image folder)"
    )
    pixel_levels: int = _option(0, "values a pixel can take; 0 lets the data say")
    class_conditional: bool = _option(
        False, "model the images given their class (glow; data with labels)"
    )
    steps: int = _option(2000, "optimiser steps")
    batch_size: int = _option(64, "images a step")
    lr: float = _option(1e-3, "peak learning rate of Adam")
    warmup_steps: int = _option(100, "steps of linear learning-rate warm-up")
    schedule: Literal["cosine", "constant"] = _option("cosine", "learning rate after the warm-up")
    weight_decay: float = _option(0.0, "decoupled weight decay (AdamW)")
    clip: float = _option(50.0, "largest norm of the gradient; 0 does not clip")
    ema: float = _option(
        0.0, "decay of the running average of the weights that is judged and sampled; 0 is none"
    )
    seed: int = _option(0, "of weights, data order, dequantisation noise and samples")
    threads: int = _option(0, "CPU threads; 0 leaves it to torch")
    device: Literal["auto", "cpu", "cuda"] = _option(
        "auto", "where to train; auto takes cuda where there is one"
    )
    dtype: Literal["float32", "float64", "bfloat16"] = _option(
        "float32", "of weights and arithmetic; bfloat16 is autocast over float32 weights"
    )
    compile: bool = _option(False, "train through torch.compile")
    log_every: int = _option(20, "steps between rows of metrics.jsonl")
    eval_every: int = _option(200, "steps between held-out evaluations")
    eval_images: int = _option(512, "held-out images in those; the last one takes all")
    checkpoint_every: int = _option(200, "steps between checkpoints")
    sample_count: int = _option(64, "images in samples.png")
    sample_temperature: float = _option(
        0.7, "standard deviation of the latent noise of samples.png"
    )

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "log_every",
            "eval_every",
            "eval_images",
            "checkpoint_every",
        ):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "seed", "threads", "sample_count"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "sample_temperature"):
            self._check(name, 0 < getattr(self, name) < math.inf, "positive and finite")
        for name in ("weight_decay", "clip"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "at least 0 and finite")
        self._check("ema", 0 <= self.ema < 1, "in [0, 1)")
        self._check(
            "pixel_levels",
            self.pixel_levels == 0 or 2 <= self.pixel_levels <= 256,
            "0 or in [2, 256]",
        )

    def _check(self, name: str, holds: bool, expectation: str) -> None:
        if not holds:
            raise CommandError(
                f"--{name.replace('_', '-')} must be {expectation}, got {getattr(self, name)}"
            )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of 0-based ``step``.

        Linear warm-up, then constant or a cosine down to 1%.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


#: Defaults that suit one model on one data set, chosen on images split off the training part.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    # One thread: the 8x8 layers are too small to share, and bits do not depend on the machine.
    ("glow", "digits"): {
        "flow_steps": 8,
        "hidden": 48,
        "preprocess": "logit",
        "alpha": 0.02,
        "steps": 1200,
        "lr": 2e-3,
        "ema": 0.995,
        "weight_decay": 1.0,
        "threads": 1,
    },
    ("glow", "fashion-mnist"): {
        "flow_steps": 8,
        "hidden": 64,
        "preprocess": "logit",
        "alpha": 0.005,
        "steps": 8000,
        "lr": 2e-3,
        "eval_every": 500,
    },
    ("linear_ae", "digits"): {"batch_size": 256, "lr": 1e-2},
    ("denoising_ae", "digits"): {"lr": 4e-3},
    ("sparse_ae", "digits"): {"latent": 256, "lr": 1e-2},
    ("stacked_ae", "digits"): {
        "hidden": 128,
        "depth": 2,
        "layer_steps": 500,
        "steps": 4000,
        "lr": 2e-3,
    },
    ("cluster_vae", "digits"): {"precision": 25.0, "steps": 1500},
    ("vib", "digits"): {"steps": 600},
    ("nvae", "digits"): {
        "channels": 8,
        "groups": 2,
        "latent": 4,
        "kl_warmup": 200,
        "steps": 1200,
        "lr": 3e-3,
    },
    **{
        (model, "fashion-mnist"): {"eval_every": 1000, "log_every": 100, **options}
        for model, options in {
            "linear_ae": {"steps": 3000, "batch_size": 512, "lr": 1e-2},
            "ae": {"steps": 10_000, "batch_size": 128, "lr": 4e-3},
            "denoising_ae": {"steps": 5000, "batch_size": 128, "lr": 4e-3},
            "sparse_ae": {"steps": 4000, "batch_size": 128},
            "stacked_ae": {"steps": 8000, "batch_size": 128, "schedule": "constant"},
            "vae": {"steps": 20_000, "batch_size": 128, "kl_warmup": 2000},
            "cvae": {"steps": 20_000, "batch_size": 128, "kl_warmup": 2000},
            "vib": {"steps": 12_000, "batch_size": 100, "lr": 5e-4, "beta": 3e-3, "ema": 0.999},
        }.items()
    },
}


@dataclass(frozen=True)
class RunConfig:
    """Content of ``config.json``.

    Attributes:
        model: Key of ``flowops.models.MODELS``.
        event_shape: ``(channels, height, width)`` of an image.
        model_options: Every option of the model but the event shape.
        train: Every training setting.
        data: What was found: name, levels, image counts, split, SHA-256.
        non_default: The names of the options that differ from their defaults.
        environment: Versions and thread count; a resumed run takes the same threads.
    """

    model: str
    event_shape: tuple[int, int, int]
    model_options: dict[str, Any]
    train: TrainSettings
    data: dict[str, Any]
    non_default: list[str]
    environment: dict[str, Any]

    @property
    def classes(self) -> int:
        """Number of classes, or clusters, that a sample can be asked of; 0 for none."""
        return self.model_options.get("classes", 0) or self.model_options.get("clusters", 0)

    @property
    def title(self) -> str:
        """What to call the model in reports: bits given the class are not those without."""
        return f"class-conditional {self.model}" if self.train.class_conditional else self.model

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunConfig:
        """Read what :meth:`to_json` gave.

        Raises:
            KeyError: A part is missing.
            TypeError: A setting is unknown to this version.
        """
        return cls(
            model=value["model"],
            event_shape=tuple(value["event_shape"]),
            model_options=value["model_options"],
            train=TrainSettings(**value["train"]),
            data=value["data"],
            non_default=value["non_default"],
            environment=value["environment"],
        )


def model_fields(config_type: type) -> list[Field[Any]]:
    """Return the fields of a configuration that are options: not the shape, not conditioning."""
    return [entry for entry in fields(config_type) if entry.name not in _NOT_OPTIONS]


def option_name(field_name: str) -> str:
    """Return a model field's option: its name, or ``flow_<name>`` where training has that one."""
    taken = field_name in TrainSettings.__dataclass_fields__
    return f"flow_{field_name}" if taken else field_name


def split_options(
    options: dict[str, Any], config_type: type
) -> tuple[TrainSettings, dict[str, Any]]:
    """Return the training settings and the model's fields that ``options`` hold together."""
    settings = TrainSettings(**{name: options[name] for name in TrainSettings.__dataclass_fields__})
    return settings, {
        entry.name: options[option_name(entry.name)] for entry in model_fields(config_type)
    }


def default_options(model: str, data: str, config_type: type) -> dict[str, Any]:
    """Return the default of every option, of training and of ``model``, for ``data``."""
    options = {entry.name: entry.default for entry in fields(TrainSettings)}
    options |= {option_name(entry.name): entry.default for entry in model_fields(config_type)}
    options |= {"data": data} | PRESETS.get((model, data), {})
    return options
