"""N-way K-shot tasks from a labelled data set."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_meta.datamodules.arguments import Range, check_sampling
from lightning_meta.datamodules.labelled import Reader, class_name, scaled, targets_of
from lightning_meta.datamodules.sampling import (
    Draw,
    Integers,
    Places,
    Shape,
    draw_fixed,
    draw_varied,
    places_fixed,
    places_varied,
)
from lightning_meta.datamodules.transforms import Transform, Transforms
from lightning_meta.errors import ConfigurationError
from lightning_meta.task import Examples, Task, map_tensors


class ClassTasks:
    """Draws `N` classes and `K + Q` examples of each without replacement; the classes get the labels 0 to `N - 1`.

    Tasks vary in size where way or shot is a range, where they are not balanced, or where classes are too small for
    `K + Q` examples. A batch is then padded to its largest task, and always has masks. Otherwise it never has.

    Args:
        dataset: A map-style data set with an integer `targets` sequence, or a `Subset` of one. Where it holds its data
            as tensors of all examples (`ClassDataset`, `TensorDataset`), whole batches are gathered in one step.
        split: `"train"`, `"val"` or `"test"`: which stream of tasks.
        n_way: Classes `N` of a task, or a range (smallest, largest) from which each task's number is drawn.
        k_shot: Support examples `K` of each class, or a range.
        n_query: Query examples `Q` of each class.
        seed: Which streams.
        balanced: Whether the classes of a task have the same shot. If not, `sampling.unequal_shots` says which.
        min_examples: Use every class of at least that many examples, even if they are fewer than `K + Q`, and leave out
            smaller ones.
        collate: Stacks the inputs of examples that were read one by one: those of a whole batch of tasks in one call,
            first the support sets' and then the query sets', without padding.
        transform: Of one support example, once uint8 images are floats in [0, 1]: see `Transforms`.
        query_transform: The same of a query example.

    Raises:
        ArgumentTypeError: A number is of another kind.
        ConfigurationError: The data set cannot give such tasks; the message says why and what to do.

    Example:
        >>> from lightning_meta.datasets import glyphs
        >>> tasks = ClassTasks(glyphs(range(10)), "train", n_way=5, k_shot=1, n_query=2)
        >>> tasks.tasks([0, 1]).query.inputs.shape
        torch.Size([2, 10, 1, 28, 28])
        >>> support = ClassTasks(glyphs(range(10)), "train", n_way=(2, 5), k_shot=1, n_query=2).tasks([1, 2]).support
        >>> support.targets.tolist(), support.mask.sum(1).tolist()
        ([[0, 1, 0, 0], [0, 1, 2, 3]], [2, 4])
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        split: str,
        n_way: Range,
        k_shot: Range,
        n_query: int,
        seed: int = 0,
        balanced: bool = True,
        min_examples: int | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        transform: Transform | None = None,
        query_transform: Transform | None = None,
    ) -> None:
        check_sampling(balanced, min_examples)
        self.dataset = dataset
        self.split = split
        self.shape = Shape(n_way, k_shot, n_query, balanced)
        self.seed = seed
        self.min_examples = min_examples
        targets = targets_of(dataset, split)
        labels, sizes = np.unique(targets, return_counts=True)
        used = sizes >= (min_examples or 0)
        if not used.all():
            rank_zero_info(
                f"{split}: {(~used).sum()} of {len(sizes)} classes have fewer than min_examples={min_examples} "
                "examples and are left out."
            )
        self._by_class = np.argsort(targets, kind="stable")
        self._first = np.concatenate([[0], np.cumsum(sizes)[:-1]])[used].astype(np.int64)
        self._labels, self._sizes = labels[used], sizes[used].astype(np.int64)
        self._reader = Reader(dataset, split, collate, seed)
        self._transforms = Transforms(transform, query_transform, split, seed)
        self._check()

    def _check(self) -> None:
        """Refuse a shape of tasks that the classes cannot give."""
        n_way, k_shot, n_query = self.shape.n_way, self.shape.shots[1], self.shape.n_query
        if self.shape.ways[1] > len(self._sizes):
            large = "" if self.min_examples is None else f" with at least min_examples={self.min_examples} examples"
            raise ConfigurationError(
                f"{self.split}: a task needs n_way={n_way} classes, but the data set has {len(self._sizes)}{large}. "
                "Lower n_way."
            )
        short = self._sizes < self.shape.needed
        if self.min_examples is None and short.any():
            which = ", ".join(
                f"{class_name(self.dataset, label)} has {size}"
                for label, size in zip(self._labels[short][:5], self._sizes[short][:5], strict=True)
            )
            more = f", and {short.sum() - 5} more classes" if short.sum() > 5 else ""
            raise ConfigurationError(
                f"{self.split}: a task needs k_shot + n_query = {k_shot} + {n_query} = {self.shape.needed} examples of "
                f"each class, but class {which}{more}. Lower k_shot or n_query, or leave such classes out. "
                "min_examples=2 uses every class that has 2."
            )
        self._fixed = self.shape.fixed and not short.any()

    @property
    def n_way(self) -> Range:
        """Classes of a task."""
        return self.shape.n_way

    @property
    def k_shot(self) -> Range:
        """Support examples of each class."""
        return self.shape.k_shot

    @property
    def n_query(self) -> int:
        """Query examples of each class."""
        return self.shape.n_query

    def to(self, device: torch.device) -> "ClassTasks":
        """The same tasks with the data on a device, if it is held as tensors that take a quarter of what is free there.

        So a batch needs to send its examples' positions only, and uint8 images are converted on the device. Random
        transforms, which are seeded on the CPU, keep it there.
        """
        reader = self._reader if self._transforms.is_random else self._reader.to(device)
        if reader is self._reader:
            return self
        moved = copy.copy(self)
        moved._reader = reader
        return moved

    def of_shape(self, n_way: Range, k_shot: Range) -> "ClassTasks":
        """Tasks of another way and shot from the same data, which is not held twice.

        Raises:
            ConfigurationError: The data set cannot give such tasks.
        """
        other = copy.copy(self)
        other.shape = replace(self.shape, n_way=n_way, k_shot=k_shot)
        other._check()
        return other

    def indices(self, numbers: Sequence[int]) -> Integers:
        """Positions in the data set of the tasks' examples, `(B, N, K + Q)`, the support examples first.

        Where tasks vary in size, `N` and `K + Q` are the largest of these tasks, and -1 stands where there is nothing.
        """
        draw, found = self._drawn(numbers)
        there = np.arange(found.shape[2]) < (draw.shots + draw.queries)[..., None]
        return np.where(there, found, -1)

    def class_names(self, numbers: Sequence[int]) -> list[list[str]]:
        """The classes of the tasks of these numbers, in the order of their labels: names, or numbers as text."""
        draw, _ = self._drawn(numbers)
        return [
            [class_name(self.dataset, self._labels[c]) for c, shots in zip(*of_task, strict=True) if shots]
            for of_task in zip(draw.classes, draw.shots, strict=True)
        ]

    def _drawn(self, numbers: Sequence[int]) -> tuple[Draw, Integers]:
        """What is drawn, and positions `(B, N, M)` in the data set, where what does not count is any position."""
        draw = (draw_fixed if self._fixed else draw_varied)(self.shape, self._sizes, self.seed, self.split, numbers)
        return draw, self._by_class[self._first[draw.classes][..., None] + draw.within]

    def tasks(self, numbers: Sequence[int]) -> Task:
        """The tasks of these numbers: inputs `(B, N*K, ...)` and `(B, N*Q, ...)`, targets `(B, N*K)` and `(B, N*Q)`.

        Where tasks vary in size, sets are as large as the largest of these tasks; masks `(B, examples)` say which
        examples there are, and inputs and targets of the others are 0.
        """
        draw, found = self._drawn(numbers)
        parts = places_fixed(found, self.shape.shots[0]) if self._fixed else places_varied(draw, found)
        inputs = self._reader.read(parts, numbers)
        if self._transforms:
            inputs = self._transforms([scaled(each, self.dataset) for each in inputs], parts, numbers)
        support, query = (self._examples(*pair) for pair in zip(parts, inputs, strict=True))
        return Task(support, query)

    def _examples(self, part: Places, inputs: Any) -> Examples:
        labels = torch.from_numpy(part.labels)
        if part.mask is None:
            return Examples(map_tensors(lambda t: t.view(*labels.shape, *t.shape[1:]), inputs), labels)
        mask = torch.from_numpy(part.mask)
        there = mask.flatten().nonzero().squeeze(1)

        def padded(tensor: Tensor) -> Tensor:
            full = tensor.new_zeros(mask.numel(), *tensor.shape[1:])
            full.index_copy_(0, there.to(tensor.device, non_blocking=True), tensor)
            return full.view(*mask.shape, *tensor.shape[1:])

        return Examples(map_tensors(padded, inputs), labels, mask)
