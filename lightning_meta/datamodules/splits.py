"""Dividing a labelled data set by its classes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import Dataset, Subset

from lightning_meta.datamodules.labelled import targets_of
from lightning_meta.errors import ConfigurationError
from lightning_meta.files import write_atomically
from lightning_meta.randomness import uniforms


def class_split(dataset: Dataset[Any], fractions: Sequence[float], seed: int = 0) -> list[Subset[Any]]:
    """Divide a labelled data set by its classes, which are shuffled by a seed.

    Args:
        dataset: A map-style data set with an integer `targets` sequence.
        fractions: The part of the classes that each split gets; their sum is at most 1. A part of 0 is no class.
        seed: Another seed, other classes in each split.

    Returns:
        A subset for each part, of at least one class where the part is above 0.

    Raises:
        ConfigurationError: A part is negative, they are more than all, or there are fewer classes than parts.

    Example:
        >>> from lightning_meta.datasets import glyphs
        >>> train, val, test = class_split(glyphs(range(10)), [0.6, 0.2, 0.2], seed=1)
        >>> len(train), len(val), len(test)
        (120, 40, 40)
    """
    if any(not part >= 0 for part in fractions) or not 0 < sum(fractions) <= 1 + 1e-9:
        raise ConfigurationError(f"The parts of a split must not be negative, and at most 1 together, got {fractions}.")
    targets = targets_of(dataset, "split")
    labels = np.unique(targets)
    if len(labels) < sum(part > 0 for part in fractions):
        raise ConfigurationError(f"{len(labels)} classes cannot be divided into {len(fractions)} splits.")
    shuffled = labels[np.argsort(uniforms(seed, "class_split", [0], len(labels))[0], kind="stable")]
    counts = np.round(np.cumsum(fractions) * len(labels)).astype(int)
    sizes = np.diff(counts, prepend=0)
    for place, part in enumerate(fractions):  # at least one class for each, of those that have most
        if part > 0 and sizes[place] == 0:
            sizes[np.argmax(sizes)] -= 1
            sizes[place] = 1
    ends = np.cumsum(sizes)
    return [
        Subset(dataset, np.flatnonzero(np.isin(targets, shuffled[end - size : end])).tolist())
        for end, size in zip(ends, sizes, strict=True)
    ]


class SplitRecord:
    """Writes the classes of each split to `classes.json` in a run's folder, once its training has begun."""

    def __init__(self) -> None:
        self._written = False

    def __call__(self, trainer: pl.Trainer | None, classes: Mapping[str, Sequence[str]]) -> None:
        """Called with each batch."""
        if trainer is not None and trainer.is_global_zero and not self._written and trainer.training:
            self._written = True
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "classes.json", json.dumps(classes, indent=1).encode())
