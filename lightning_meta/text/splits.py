"""Which classes of texts each split has."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Subset

from lightning_meta.datamodules.splits import class_split
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import ConfigurationError, DataError, MissingFileError

SPLITS = ("train", "val", "test")


def read_split_file(path: Path, fold: int = 1) -> dict[str, list[str]]:
    """The classes (or groups) of each split from a JSON file.

    Args:
        path: Of `{"train": [...], "val": [...], "test": [...]}`, or of several such folds, `{"folds": [{...}, ...]}`.
        fold: Which of the folds, from 1.

    Raises:
        MissingFileError: There is no such file.
        DataError: It is of another form, or two splits share a name.
        ConfigurationError: There is no such fold.
    """
    if not path.is_file():
        raise MissingFileError(f"split_file: there is no file {path}.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    folds = content.get("folds", [content]) if isinstance(content, dict) else None
    if not isinstance(folds, list) or not all(isinstance(each, dict) for each in folds):
        form = '{"train": [...], "val": [...], "test": [...]}'
        raise DataError(f'{path} must be {form}, or {{"folds": [{form}, ...]}}.')
    if not 1 <= fold <= len(folds):
        raise ConfigurationError(f"fold={fold}: {path} has the folds 1 to {len(folds)}.")
    found = {split: folds[fold - 1][split] for split in SPLITS if split in folds[fold - 1]}
    if not found or not all(isinstance(names, list) for names in found.values()):
        raise DataError(f"{path}: a fold must have lists of names as train, val and test.")
    seen: dict[str, str] = {}
    for split, names in found.items():
        found[split] = names = [str(name) for name in names]
        for name in names:
            if seen.setdefault(name, split) != split:
                raise DataError(f"{path}: {name!r} is in {seen[name]} and in {split}. Few-shot splits share no class.")
    return found


def split_by_file(data: ClassDataset, names: Sequence[str], found: dict[str, list[str]]) -> dict[str, Subset[Any]]:
    """The examples of each split.

    Args:
        data: All examples.
        names: What of each is looked up in the file: the name of its class, or of its group.
        found: The names of each split.

    Raises:
        DataError: A name of the file is not among the data's.
    """
    there = set(names)
    listed = {name for each in found.values() for name in each}
    unknown = sorted(listed - there)
    if unknown:
        raise DataError(
            f"The split file names {len(unknown)} that the data has not, such as {unknown[0]!r}; the data has "
            f"{', '.join(map(repr, sorted(there)[:3]))}, ... Give the split file of this data."
        )
    left = sorted(there - listed)
    if left:
        rank_zero_info(f"{len(left)} of {len(there)} are in no split and are left out: {', '.join(left[:5])}.")
    array = np.asarray(names)
    return {split: Subset(data, np.flatnonzero(np.isin(array, each)).tolist()) for split, each in found.items()}


def split_at_random(
    data: ClassDataset, groups: Sequence[str] | None, fractions: Sequence[float], seed: int
) -> dict[str, Subset[Any]]:
    """The examples of each split, by parts of the classes, or of the groups where there are some."""
    source = data
    if groups is not None:
        numbers = {name: i for i, name in enumerate(sorted(set(groups)))}
        source = ClassDataset(data.targets, [numbers[name] for name in groups], list(numbers))
    try:
        parts = class_split(source, fractions, seed)
    except ConfigurationError as error:
        where = "split" if groups is None else "split (of groups in the place of classes)"
        raise ConfigurationError(f"{where}: {error}") from error
    return {split: Subset(data, part.indices) for split, part in zip(SPLITS, parts, strict=True) if len(part)}


def check_groups(labels: Sequence[str], groups: Sequence[str]) -> None:
    """Refuse a class that is in two groups.

    Raises:
        DataError: There is one; the message names it.
    """
    of: dict[str, str] = {}
    for label, group in zip(labels, groups, strict=True):
        if of.setdefault(label, group) != group:
            raise DataError(
                f"The class {label!r} is in the groups {of[label]!r} and {group!r}. A class must lie in one group, so "
                "that splits share no class."
            )
