"""The training loop: maximum likelihood on dequantised images, resumable at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowops.cli.checkpoint import Checkpoint, load_weights, restore_rng_states, rng_states
from flowops.cli.console import Progress
from flowops.cli.diagnosis import first_non_finite_layer, first_non_finite_parameter
from flowops.cli.errors import FAILURE, CommandError
from flowops.cli.evaluation import held_out_bits
from flowops.cli.noise import DEQUANTISATION, INITIALISATION, BatchOrder, generator, stream_seed
from flowops.cli.run_folder import RunFolder
from flowops.cli.settings import RunConfig
from flowops.data import ImageData
from flowops.distributions import Flow
from flowops.losses import bits_per_dim
from flowops.models import build
from flowops.nn.preprocess import dequantize

_INITIALISATION_IMAGES = 512


def build_model(config: RunConfig, device: torch.device) -> Flow:
    """Build the model of ``config`` with weights drawn from its seed, on ``device``.

    Raises:
        CommandError: An option has a value that the model refuses.
    """
    torch.manual_seed(stream_seed(config.train.seed, INITIALISATION))
    try:
        model = build(config.model, config.event_shape, **config.model_options)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    return model.to(device=device, dtype=weight_dtype(config))


def weight_dtype(config: RunConfig) -> torch.dtype:
    """Return the type of the weights; ``bfloat16`` runs keep float32 ones under autocast."""
    return torch.float64 if config.train.dtype == "float64" else torch.float32


class Trainer:
    """One run from its first step, or its last checkpoint, to its last step.

    Args:
        config: Settings; ``config.train.steps`` steps are done in all.
        data: Images of ``config.event_shape``.
        folder: Takes metrics and checkpoints.
        device: Where to train.
        quiet: Show no progress bar.
    """

    def __init__(
        self,
        config: RunConfig,
        data: ImageData,
        model: Flow,
        folder: RunFolder,
        device: torch.device,
        *,
        quiet: bool = False,
    ) -> None:
        self.config = config
        self.settings = config.train
        self.data = data
        self.folder = folder
        self.device = device
        self.quiet = quiet
        self.step = 0
        self.dtype = weight_dtype(config)
        self.order = BatchOrder(len(data.train), self.settings.batch_size, self.settings.seed)
        self.model = model
        self.average: AveragedModel | None = None
        if self.settings.ema > 0:
            self.average = AveragedModel(model, multi_avg_fn=self._average)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.window = torch.zeros(self.settings.log_every, dtype=torch.float64)
        self.log_prob: Callable[[Tensor, Tensor | None], Tensor] = (
            torch.compile(model.log_prob) if self.settings.compile else model.log_prob
        )

    @property
    def judged(self) -> Flow:
        """The model to evaluate and sample: the running average where there is one."""
        return self.model if self.average is None else cast("Flow", self.average.module)

    def begin(self) -> None:
        """Take the data-dependent initial values from some of the training images."""
        chosen = self.order_start()
        images = self.data.train[chosen]
        source = generator(self.settings.seed, INITIALISATION, 1)
        y = dequantize(torch.from_numpy(images).to(self.dtype), self.data.levels, generator=source)
        self.model.initialize(y.to(self.device), self._classes(chosen))

    def order_start(self) -> Any:
        """Return the indices of the images that initialisation sees."""
        source = generator(self.settings.seed, INITIALISATION, 2)
        return torch.randperm(len(self.data.train), generator=source)[
            :_INITIALISATION_IMAGES
        ].numpy()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Make the state of ``checkpoint`` the run's; later rows of the metrics are dropped."""
        load_weights(self.model, checkpoint.model, self.folder.path)
        if self.average is not None:
            load_weights(self.average, checkpoint.ema, self.folder.path)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        restore_rng_states(checkpoint.rng)
        self.window = checkpoint.window
        self.step = checkpoint.step
        self.folder.metrics.cut_after(self.step)

    def run(self) -> None:
        """Train up to the last step.

        Raises:
            CommandError: A loss, gradient or weight is not finite, or a file cannot be written;
                exit code 1.
        """
        settings = self.settings
        images = settings.steps * settings.batch_size
        done = self.step * settings.batch_size
        self.model.train()
        with Progress(images, done=done, label=self.config.model, quiet=self.quiet) as progress:
            while self.step < settings.steps:
                loss = self._advance()
                progress.update(settings.batch_size, **{"bits/dim": loss})

    def _advance(self) -> float:
        """Do one step and whatever falls due after it; returns the batch's bits/dim."""
        settings = self.settings
        loss, norm = self._optimise()
        self.window[self.step % settings.log_every] = loss
        self.step += 1
        if self.step % settings.log_every == 0:
            row = {
                "step": self.step,
                "epoch": self.order.epoch(self.step - 1),
                "train_bits_per_dim": self.window.mean().item(),
                "gradient_norm": norm,
                "learning_rate": settings.learning_rate(self.step - 1),
            }
            if self.step % settings.eval_every == 0:
                row["test_bits_per_dim"] = self.held_out_bits(settings.eval_images)
            self.folder.metrics.append(row)
        if self.step % settings.checkpoint_every == 0 or self.step == settings.steps:
            self.save()
        return loss

    def _optimise(self) -> tuple[float, float]:
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate(self.step)
        y, context = self._batch()
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            log_prob = self.log_prob(y, context)
            loss = bits_per_dim(log_prob, self.config.event_shape, self.data.levels).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip or math.inf)
        # One transfer before the update: what is not finite never reaches the weights.
        loss_value, norm_value = torch.stack([loss.detach().double(), norm.double()]).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise self._not_finite(loss_value, y, context)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss_value, norm_value

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Any) -> None:
        # A young average forgets faster, so that a short run is not judged by its first weights.
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        for mean, value in zip(averaged, current, strict=True):
            mean.lerp_(value, 1 - decay)

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        chosen = self.order.batch(self.step).numpy()
        values = torch.from_numpy(self.data.train[chosen])
        source = generator(self.settings.seed, DEQUANTISATION, self.step)
        y = dequantize(values.to(self.dtype), self.data.levels, generator=source)
        return y.to(self.device, non_blocking=True), self._classes(chosen)

    def _classes(self, chosen: NDArray[np.int64]) -> Tensor | None:
        labels = self.data.train_labels
        return None if labels is None else torch.from_numpy(labels[chosen]).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.settings.dtype == "bfloat16"
        )

    def _not_finite(self, loss: float, y: Tensor, context: Tensor | None) -> CommandError:
        place = f"at step {self.step + 1}"
        kept = (
            "the last checkpoint is intact"
            if self.folder.has_checkpoint()
            else "no checkpoint was due yet"
        )
        if not math.isfinite(loss):
            with self._autocast():
                layer = first_non_finite_layer(self.model, lambda: self.model.log_prob(y, context))
            layer = layer or "every layer's output is finite, the density of the noise is not"
            return CommandError(f"loss is {loss} {place}: {layer}; {kept}", FAILURE)
        name = first_non_finite_parameter(self.model, gradients=True) or "all parameters together"
        return CommandError(f"gradient of {name} is not finite {place}; {kept}", FAILURE)

    def held_out_bits(
        self, count: int | None = None, report: Callable[[int], None] | None = None
    ) -> float:
        """Return bits/dim of the first ``count`` held-out images, of all when None."""
        return held_out_bits(
            self.judged,
            self.data.test[:count],
            self.data.levels,
            labels=None if self.data.test_labels is None else self.data.test_labels[:count],
            seed=self.settings.seed,
            report=report,
        )

    def save(self) -> None:
        """Write metrics, then the checkpoint, to the disk.

        Raises:
            CommandError: A weight is not finite, or the disk refused; the previous checkpoint is
                intact; exit code 1.
        """
        name = first_non_finite_parameter(self.model)
        if name is not None:
            raise CommandError(
                f"parameter {name} is not finite after step {self.step}; "
                "the last checkpoint is intact",
                FAILURE,
            )
        self.folder.metrics.synchronise()
        Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            ema={} if self.average is None else self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            rng=rng_states(),
            window=self.window,
            order={"seed": self.settings.seed, "epoch": self.order.epoch(self.step)},
        ).save(self.folder.path)
