"""Loaders of tasks that Lightning leaves alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_meta.task import Task, TaskDistribution


class _Batches(Dataset[Task]):
    """Item `i` is the batch of the tasks that `numbers(i)` names."""

    def __init__(self, distribution: TaskDistribution, numbers: Callable[[int], Sequence[int]]) -> None:
        self.distribution = distribution
        self.numbers = numbers

    def __getitem__(self, index: int) -> Task:
        return self.distribution.tasks(self.numbers(index))


class TaskLoader:
    """Iterates over batches of tasks.

    It is no `DataLoader`, so Lightning neither shards it nor gives it a sampler: which tasks this rank gets is settled
    by `numbers`.

    Args:
        distribution: Makes tasks.
        numbers: The task numbers of a batch on this rank, given the number of the batch.
        length: Batches in an epoch.
        first: Asked at the start of each iteration for the number of its first batch.
        num_workers: Worker processes; none make the tasks in this one.
        finish: Applied to each batch in this process.
    """

    def __init__(
        self,
        distribution: TaskDistribution,
        numbers: Callable[[int], Sequence[int]],
        length: int,
        first: Callable[[], int] = int,
        num_workers: int = 0,
        finish: Callable[[Task], Task] | None = None,
    ) -> None:
        self.batches = _Batches(distribution, numbers)
        self.length = length
        self.first = first
        self.num_workers = num_workers
        self.finish = finish

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Task]:
        start = self.first()
        loader: DataLoader[Any] = DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(start, start + self.length),
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            # Its own, so that iterating leaves the global random numbers alone; workers start from its numbers.
            generator=torch.Generator().manual_seed(start),
        )
        for task in loader:
            yield task if self.finish is None else self.finish(task)

    def state_dict(self) -> dict[str, int]:
        """Nothing: where to go on follows from the Trainer's counters. Lightning asks whether it can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to restore."""


def _as_it_is(task: Any) -> Any:
    return task
