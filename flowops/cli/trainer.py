"""The training loop, resumable at any step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowops.cli.checkpoint import Checkpoint, load_weights, restore_rng_states, rng_states
from flowops.cli.console import Progress
from flowops.cli.diagnosis import first_non_finite_layer, first_non_finite_parameter
from flowops.cli.errors import FAILURE, CommandError
from flowops.cli.noise import DEQUANTISATION, INITIALISATION, BatchOrder, generator, stream_seed
from flowops.cli.objectives import objective_of
from flowops.cli.run_folder import RunFolder
from flowops.cli.settings import RunConfig
from flowops.data import ImageData
from flowops.distributions import Flow
from flowops.models import ImageModel, Loss, build
from flowops.utils import EMA

_INITIALISATION_IMAGES = 512


def build_model(config: RunConfig, device: torch.device) -> Flow | ImageModel:
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
        model: Flow | ImageModel,
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
        self.objective = objective_of(model, data.levels)
        self.average: EMA | None = None
        if self.settings.ema > 0:
            self.average = EMA(model, self.settings.ema, warm_up=True)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.window = torch.zeros(self.settings.log_every, dtype=torch.float64)
        self.loss: Callable[..., Loss] = (
            torch.compile(self.objective.loss) if self.settings.compile else self.objective.loss
        )

    @property
    def judged(self) -> Flow | ImageModel:
        """The model to evaluate and sample: the running average where there is one."""
        return (
            self.model if self.average is None else cast("Flow | ImageModel", self.average.module)
        )

    def begin(self) -> None:
        """Take the data-dependent initial values from some of the training images."""
        chosen = self.order_start()
        source = generator(self.settings.seed, INITIALISATION, 1)
        self.objective.begin(self.model, self._images(chosen, source), self._classes(chosen))

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
        self._lay_out_optimizer()
        restore_rng_states(checkpoint.rng)
        self.window = checkpoint.window
        self.step = checkpoint.step
        self.folder.metrics.cut_after(self.step)

    def _lay_out_optimizer(self) -> None:
        """Give the optimiser's tensors the strides of their parameters.

        A checkpoint has none, and the fused optimiser walks both by address.
        """
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)

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
                progress.update(settings.batch_size, **{self.objective.unit_name: loss})

    def _advance(self) -> float:
        """Do one step and whatever falls due after it; returns the batch's headline."""
        settings = self.settings
        unit = self.objective.unit
        headline, norm, parts = self._optimise()
        self.window[self.step % settings.log_every] = headline
        self.step += 1
        if self.step % settings.log_every == 0:
            row = {
                "step": self.step,
                "epoch": self.order.epoch(self.step - 1),
                f"train_{unit}": self.window.mean().item(),
                "gradient_norm": norm,
                "learning_rate": settings.learning_rate(self.step - 1),
            } | {f"train_{name}": value for name, value in parts.items()}
            if self.step % settings.eval_every == 0:
                figures = self.judge(settings.eval_images)
                row |= {f"test_{name}": value for name, value in figures.items()}
            self.folder.metrics.append(row)
        if self.step % settings.checkpoint_every == 0 or self.step == settings.steps:
            self.save()
        return headline

    def _optimise(self) -> tuple[float, float, dict[str, float]]:
        """Take one step; returns the headline, the gradient's norm and the loss's parts."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate(self.step)
        x, labels = self._batch()
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss, parts = self.loss(self.model, x, labels, self.step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip or math.inf)
        # One transfer before the update: what is not finite never reaches the weights.
        scalars = torch.stack([value.detach().double() for value in (loss, norm, *parts.values())])
        loss_value, norm_value, *part_values = scalars.tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise self._not_finite(loss_value, x, labels)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        reported = dict(zip(parts, part_values, strict=True))
        part = self.objective.headline_part
        return loss_value if part is None else reported.pop(part), norm_value, reported

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        chosen = self.order.batch(self.step).numpy()
        source = generator(self.settings.seed, DEQUANTISATION, self.step)
        return self._images(chosen, source), self._classes(chosen)

    def _images(self, chosen: NDArray[np.int64], source: torch.Generator) -> Tensor:
        values = torch.from_numpy(self.data.train[chosen])
        x = self.objective.prepare(values, self.dtype, source)
        return x.to(self.device, non_blocking=True)

    def _classes(self, chosen: NDArray[np.int64]) -> Tensor | None:
        labels = self.data.train_labels
        return None if labels is None else torch.from_numpy(labels[chosen]).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.settings.dtype == "bfloat16"
        )

    def _not_finite(self, loss: float, x: Tensor, labels: Tensor | None) -> CommandError:
        place = f"at step {self.step + 1}"
        kept = (
            "the last checkpoint is intact"
            if self.folder.has_checkpoint()
            else "no checkpoint was due yet"
        )
        if not math.isfinite(loss):
            with self._autocast():
                layer = first_non_finite_layer(
                    self.model, lambda: self.objective.loss(self.model, x, labels, self.step)
                )
            layer = layer or "every layer's output is finite, the loss made of them is not"
            return CommandError(f"loss is {loss} {place}: {layer}; {kept}", FAILURE)
        name = first_non_finite_parameter(self.model, gradients=True) or "all parameters together"
        return CommandError(f"gradient of {name} is not finite {place}; {kept}", FAILURE)

    def judge(
        self, count: int | None = None, report: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        """Return the objective's figures of the first ``count`` held-out images, None for all."""
        labels = self.data.test_labels
        return self.objective.judge(
            self.judged,
            self.data.test[:count],
            None if labels is None else labels[:count],
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
