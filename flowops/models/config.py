"""What the configurations of all models share."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from flowops.nn import ReversibleSequential, Sequential

#: Values of dequantised pixels.
PIXELS = (0.0, 1.0)


def option(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    """Return a dataclass field with a default, a one-line description and the values allowed."""
    return field(default=default, metadata={"help": help_text, "choices": choices})


def check_choice(model: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{model}: {name} must be one of {', '.join(choices)}, got {value!r}")


#: How a model's chains are built, by the value of its option ``memory``.
CHAINS: dict[str, type[Sequential]] = {"plain": Sequential, "reversible": ReversibleSequential}


def memory_option() -> Any:
    """Return the field of the option ``memory``."""
    return option(
        "plain",
        "training keeps all activations (plain) or rebuilds them in backward (reversible)",
        tuple(CHAINS),
    )


def check_at_least(model: str, name: str, value: int, least: int) -> None:
    """Raise ValueError unless ``value`` is at least ``least``."""
    if value < least:
        raise ValueError(f"{model}: {name} must be at least {least}, got {value}")


def check_image(model: str, event_shape: tuple[int, ...], halvings: int) -> None:
    """Raise ValueError unless ``event_shape`` is an image whose sides can be halved so often."""
    if len(event_shape) != 3 or min(event_shape) < 1:
        raise ValueError(
            f"{model}: event_shape must be (channels, height, width), got {tuple(event_shape)}"
        )
    _, height, width = event_shape
    possible = 0
    while height % 2 ** (possible + 1) == 0 and width % 2 ** (possible + 1) == 0:
        possible += 1
    if halvings > possible:
        raise ValueError(
            f"{model}: height and width must be divisible by {2**halvings}, for {halvings} "
            f"squeezes, got {height} x {width}: use fewer levels, or pad the images"
        )
