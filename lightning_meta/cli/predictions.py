"""Predictions of query sets, in a file that any reader of tensors can load."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.files import write_atomically


def save_predictions(predictions: Sequence[Any], loaders: int, path: Path) -> None:
    """Save what `Trainer.predict` returned, so that `torch.load(path, weights_only=True)` reads it.

    The file holds one tensor `(tasks, queries, ...)`; where tasks have different sizes, a list of one tensor
    `(queries, ...)` for each task; and where there are several loaders, a list of those, one for each loader.

    Args:
        predictions: For each batch a tensor `(B, queries, ...)` or a list of `B` tensors `(queries, ...)`; with several
            loaders such a list for each.
        loaders: The number of loaders.
        path: The file, in a folder that exists.
    """
    whole = joined(predictions) if loaders == 1 else [joined(batches) for batches in predictions]
    content = io.BytesIO()
    torch.save(whole, content)
    write_atomically(path, content.getbuffer())


def joined(batches: Sequence[Any]) -> Tensor | list[Tensor]:
    """The predictions for all tasks of several batches: one tensor if all have the same shape, or else a list."""
    tasks = [task.detach().cpu() for batch in batches for task in batch]
    if len({task.shape for task in tasks}) == 1:
        return torch.stack(tasks)
    return [task.clone() for task in tasks]  # a part of a padded tensor would be saved with all of the padding
