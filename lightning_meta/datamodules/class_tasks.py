"""N-way K-shot tasks from a labelled data set."""

import copy
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from lightning_meta.datasets import ClassDataset
from lightning_meta.randomness import choose_without_replacement, uniforms
from lightning_meta.task import Examples, Task, map_tensors


class ClassTasks:
    """Draws `N` classes and `K + Q` examples of each without replacement; the classes get the labels 0 to `N - 1`.

    Args:
        dataset: A map-style data set with an integer `targets` sequence, or a `Subset` of one. Where it holds its data
            as one tensor (`ClassDataset`, `TensorDataset`), whole batches are gathered in one step.
        split: `"train"`, `"val"` or `"test"`: which stream of tasks.
        n_way: Classes `N` in a task.
        k_shot: Support examples `K` of each class.
        n_query: Query examples `Q` of each class.
        seed: Which streams.

    Raises:
        ValueError: The data set cannot give such tasks; the message says why and what to do.

    Example:
        >>> from lightning_meta.datasets import glyphs
        >>> tasks = ClassTasks(glyphs(range(10)), "train", n_way=5, k_shot=1, n_query=2)
        >>> tasks.tasks([0, 1]).query.inputs.shape
        torch.Size([2, 10, 1, 28, 28])
    """

    def __init__(self, dataset: Dataset[Any], split: str, n_way: int, k_shot: int, n_query: int, seed: int = 0) -> None:
        self.dataset = dataset
        self.split = split
        self.n_way, self.k_shot, self.n_query, self.seed = n_way, k_shot, n_query, seed
        targets = targets_of(dataset, split)
        labels, counts = np.unique(targets, return_counts=True)
        if n_way > len(labels):
            raise ValueError(
                f"{split}: a task needs n_way={n_way} classes, but the data set has {len(labels)}. Lower n_way."
            )
        needed = k_shot + n_query
        if (short := counts < needed).any():
            which = ", ".join(
                f"{_class_name(dataset, label)} has {n}"
                for label, n in zip(labels[short][:5], counts[short][:5], strict=True)
            )
            more = f", and {short.sum() - 5} more classes" if short.sum() > 5 else ""
            raise ValueError(
                f"{split}: a task needs k_shot + n_query = {k_shot} + {n_query} = {needed} examples of each class, but "
                f"class {which}{more}. Lower k_shot or n_query, or leave such classes out."
            )
        self._by_class = np.argsort(targets, kind="stable")
        self._first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._counts = counts.astype(np.int64)
        self._tensor = _as_tensor(dataset)

    def to(self, device: torch.device) -> "ClassTasks":
        """The same tasks with the data on a device, if it is one tensor and takes a quarter of what is free there.

        So a batch needs to send its examples' positions only, and uint8 images are converted on the device.
        """
        if self._tensor is None or self._tensor[0].device == device:
            return self
        inputs, positions = self._tensor
        if device.type == "cuda" and inputs.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
            return self
        moved = copy.copy(self)
        moved._tensor = inputs.to(device), positions
        return moved

    def indices(self, numbers: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions in the data set of the tasks' examples, `(B, N, K + Q)`, the support examples first."""
        n, m = self.n_way, self.k_shot + self.n_query
        random = uniforms(self.seed, self.split, numbers, n * (1 + m))
        every = np.full(len(random), len(self._counts))
        classes = choose_without_replacement(random[:, :n], every)
        within = choose_without_replacement(random[:, n:].reshape(-1, n, m), self._counts[classes])
        found: np.ndarray[Any, np.dtype[np.int64]] = self._by_class[self._first[classes][..., None] + within]
        return found

    def tasks(self, numbers: Sequence[int]) -> Task:
        """The tasks of these numbers: inputs `(B, N*K, ...)` and `(B, N*Q, ...)`, targets `(B, N*K)` and `(B, N*Q)`."""
        chosen = self.indices(numbers)
        batch, k = len(chosen), self.k_shot

        def examples(part: np.ndarray[Any, np.dtype[np.int64]]) -> Examples:
            labels = torch.arange(self.n_way).repeat_interleave(part.shape[2]).expand(batch, -1)
            flat = self._gather(part.reshape(-1))
            return Examples(map_tensors(lambda t: t.view(batch, labels.shape[1], *t.shape[1:]), flat), labels.clone())

        return Task(examples(chosen[..., :k]), examples(chosen[..., k:]))

    def _gather(self, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        if self._tensor is not None:
            inputs, map_positions = self._tensor
            chosen = torch.from_numpy(np.ascontiguousarray(map_positions[positions]))
            return inputs.index_select(0, chosen.to(inputs.device, non_blocking=True))
        items = []
        for position in positions.tolist():
            try:
                example = self.dataset[position]
            except Exception as error:
                raise RuntimeError(
                    f"{self.split}: example {position} of the data set cannot be read: {error}"
                ) from error
            if not isinstance(example, tuple | list) or len(example) < 2:
                raise TypeError(
                    f"{self.split}: example {position} of {type(self.dataset).__name__} is a {type(example).__name__}. "
                    "A data set must return (input, target)."
                )
            items.append(example[0])
        try:
            return default_collate(items)
        except (TypeError, RuntimeError) as error:
            raise TypeError(
                f"{self.split}: inputs of type {type(items[0]).__name__} cannot be stacked: {error}. Give the data set "
                "a transform that makes tensors of one size, such as torchvision.transforms.ToTensor() after a Resize."
            ) from error


def base_of(dataset: Dataset[Any]) -> Dataset[Any]:
    """The data set that a `Subset` (of a `Subset`) was taken from."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def targets_of(dataset: Dataset[Any], split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The class number of every example.

    Raises:
        ValueError: There is no sequence of integers `targets`, or it is not as long as the data set.
    """
    if isinstance(dataset, Subset):
        return targets_of(dataset.dataset, split)[np.asarray(dataset.indices, dtype=np.int64)]
    if not hasattr(dataset, "targets") or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{split}: {type(dataset).__name__} has no length or no attribute `targets`. Set it to the class number of "
            "every example, or wrap the data in lightning_meta.datasets.ClassDataset."
        )
    targets = np.asarray(dataset.targets)
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise ValueError(
            f"{split}: the targets of {type(dataset).__name__} must be one integer for each example, got an array "
            f"{targets.shape} of {targets.dtype}. Number the classes from 0."
        )
    if len(targets) != len(dataset):
        raise ValueError(f"{split}: {type(dataset).__name__} has {len(dataset)} examples but {len(targets)} targets.")
    return targets.astype(np.int64)


def check_disjoint(datasets: Mapping[str, Dataset[Any]]) -> None:
    """Refuse splits that share classes.

    Classes are the same where two splits come from one data set object and share a class number, or where both name
    their classes (`classes`) and share a name. Class numbers of different data sets are their own.

    Args:
        datasets: The data set of each split.

    Raises:
        ValueError: Two splits share a class.
    """
    labels = {split: np.unique(targets_of(dataset, split)) for split, dataset in datasets.items()}
    for one, other in combinations(datasets, 2):
        if base_of(datasets[one]) is base_of(datasets[other]):
            shared = [_class_name(datasets[one], label) for label in np.intersect1d(labels[one], labels[other])]
        else:
            shared = sorted(_names(datasets[one], labels[one]) & _names(datasets[other], labels[other]))
        if shared:
            listed = ", ".join(shared[:5]) + (f", and {len(shared) - 5} more" if len(shared) > 5 else "")
            raise ValueError(
                f"The {one} and {other} splits share classes: {listed}. Few-shot evaluation is on classes never "
                "trained on: divide the classes, for instance with torch.utils.data.Subset."
            )


def _names(dataset: Dataset[Any], labels: np.ndarray[Any, np.dtype[np.int64]]) -> set[str]:
    """The names of these classes; none where classes have numbers only."""
    if getattr(base_of(dataset), "classes", None) is None:
        return set()
    return {_class_name(dataset, label) for label in labels}


def _class_name(dataset: Dataset[Any], label: int) -> str:
    classes = getattr(base_of(dataset), "classes", None)
    return str(classes[label]) if classes is not None and label < len(classes) else str(label)


def _as_tensor(dataset: Dataset[Any]) -> tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]] | None:
    """The data as one tensor, and where each example lies in it; `None` if only `__getitem__` knows."""
    base = base_of(dataset)
    if isinstance(base, ClassDataset) and type(base).__getitem__ is ClassDataset.__getitem__:
        inputs = base.inputs
    elif isinstance(base, TensorDataset) and type(base).__getitem__ is TensorDataset.__getitem__:
        inputs = base.tensors[0]
    else:
        return None
    positions = np.arange(len(inputs))
    chain: list[Subset[Any]] = []
    while isinstance(dataset, Subset):
        if type(dataset).__getitem__ is not Subset.__getitem__:
            return None
        chain.append(dataset)
        dataset = dataset.dataset
    for subset in reversed(chain):
        positions = positions[np.asarray(subset.indices, dtype=np.int64)]
    return inputs, positions
