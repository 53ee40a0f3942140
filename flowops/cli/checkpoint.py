"""Checkpoints: everything that training needs to go on, in one safetensors file.

Tensors are named ``model.<name>``, ``ema.<name>``, ``optimizer.<parameter index>.<slot>``,
``rng.<device>`` and ``window``; the optimiser's scalar settings and the step are JSON in the file's
metadata. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from flowops.cli.errors import FAILURE, CommandError
from flowops.cli.files import write_atomically
from flowops.cli.run_folder import CHECKPOINT

FORMAT = "1"


@dataclass
class Checkpoint:
    """State of a training run after ``step`` optimiser steps.

    Attributes:
        step: Optimiser steps done.
        model: ``state_dict`` of the model.
        ema: ``state_dict`` of its running average; empty without one.
        optimizer: ``state_dict`` of the optimiser.
        rng: State of torch's default generators by device name.
        window: Training losses since the last metrics row.
        order: Seed and epoch from which the data order and the dequantisation noise are drawn.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: dict[str, Tensor]
    window: Tensor
    ema: dict[str, Tensor] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``checkpoint.safetensors`` into ``folder``, atomically.

        Raises:
            CommandError: The system refused; the previous checkpoint is intact; exit code 1.
        """
        tensors = {f"model.{name}": value for name, value in self.model.items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        tensors |= {f"rng.{device}": value for device, value in self.rng.items()}
        tensors["window"] = self.window
        scalars: dict[str, dict[str, Any]] = {}
        for index, slots in self.optimizer["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{slot}"] = value
                else:
                    scalars.setdefault(str(index), {})[slot] = value
        metadata = {
            "format": FORMAT,
            "step": str(self.step),
            "order": json.dumps(self.order),
            "optimizer": json.dumps(
                {"param_groups": self.optimizer["param_groups"], "scalars": scalars}
            ),
        }
        content = safetensors.torch.save(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            metadata,
        )
        write_atomically(folder / CHECKPOINT, content)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read the checkpoint of ``folder``.

        Raises:
            CommandError: It is absent, or no checkpoint of this format.
        """
        path = folder / CHECKPOINT
        if not path.is_file():
            raise CommandError(
                f"{folder} holds no {CHECKPOINT}; train first, or give another --run"
            )
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise CommandError(f"{path} is not a readable checkpoint ({error})", FAILURE) from error
        if metadata.get("format") != FORMAT:
            raise CommandError(
                f"{path} must have checkpoint format {FORMAT}, got {metadata.get('format')}",
                FAILURE,
            )
        stored = json.loads(metadata["optimizer"])
        state: dict[int, dict[str, Any]] = {
            int(index): dict(slots) for index, slots in stored["scalars"].items()
        }
        for name, value in _under(tensors, "optimizer.").items():
            index, slot = name.split(".", 1)
            state.setdefault(int(index), {})[slot] = value
        return cls(
            step=int(metadata["step"]),
            model=_under(tensors, "model."),
            ema=_under(tensors, "ema."),
            optimizer={"state": state, "param_groups": stored["param_groups"]},
            rng=_under(tensors, "rng."),
            window=tensors["window"],
            order=json.loads(metadata["order"]),
        )


def rng_states() -> dict[str, Tensor]:
    """Return the state of torch's default generators, ``cpu`` and, with a GPU, ``cuda``."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_rng_states(states: Mapping[str, Tensor]) -> None:
    """Set torch's default generators as :func:`rng_states` found them."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def load_weights(module: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Load ``state`` into ``module``.

    Raises:
        CommandError: Names or shapes differ from the module's, so the code or config.json changed.
    """
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CommandError(
            f"{folder / CHECKPOINT} does not fit the model of config.json: {error}", FAILURE
        ) from error


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)
    }
