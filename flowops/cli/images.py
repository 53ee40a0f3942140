"""The images of a run."""

from __future__ import annotations

import contextlib

from flowops.cli.errors import CommandError
from flowops.cli.settings import TrainSettings
from flowops.data import ImageData, load_images
from flowops.models import MODELS, ImageModel


def load_data(settings: TrainSettings, model: str) -> ImageData:
    """Load the images of ``settings``, with labels where ``model`` has a use for them.

    Raises:
        CommandError: They are missing or malformed; the message says how to get them.
    """
    kind = MODELS[model].model
    use = kind.labels if issubclass(kind, ImageModel) else "unused"
    levels = settings.pixel_levels or None
    try:
        if use == "judge":
            # Labels tell what the codes are worth; without them the model trains all the same.
            with contextlib.suppress(ValueError):
                return load_images(settings.data, levels=levels, labels=True)
        needed = settings.class_conditional or use in ("condition", "target")
        return load_images(settings.data, levels=levels, labels=needed)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
