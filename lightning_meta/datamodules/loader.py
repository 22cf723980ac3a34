"""Loaders of tasks that Lightning leaves alone."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lightning_meta.errors import DataError, one_line
from lightning_meta.task import Task, TaskDistribution


class _Failure(NamedTuple):
    """What a worker hands over instead of a batch that it could not make."""

    message: str
    trace: str


class _Batches(Dataset["Task | _Failure"]):
    """Item `i` is the batch of the tasks that `numbers(i)` names."""

    def __init__(self, distribution: TaskDistribution, numbers: Callable[[int], Sequence[int]]) -> None:
        self.distribution = distribution
        self.numbers = numbers

    def __getitem__(self, index: int) -> Task | _Failure:
        try:
            return self.distribution.tasks(self.numbers(index))
        except Exception as error:
            if get_worker_info() is None:
                raise
            # torch would raise it in the main process with all of its trace for a message.
            return _Failure(f"Tasks {list(self.numbers(index))}: {one_line(error)}", traceback.format_exc())


class TaskLoader:
    """Iterates over batches of tasks.

    It is not a `DataLoader`, so Lightning neither shards it nor gives it a sampler: `numbers` says which tasks this
    rank gets.

    Args:
        distribution: Makes tasks.
        numbers: The task numbers of a batch on this rank, given the number of the batch.
        length: Batches in an epoch.
        first: Asked at the start of each iteration for the number of its first batch.
        num_workers: Worker processes; none make the tasks in this one.
        finish: Applied to each batch in this process.

    Raises:
        DataError: In the iteration, a worker process could not make a batch; the message says of which tasks and why.
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
            if isinstance(task, _Failure):
                raise DataError(task.message) from RuntimeError(f"In a worker process:\n{task.trace}")
            yield task if self.finish is None else self.finish(task)

    def state_dict(self) -> dict[str, int]:
        """Nothing: where to go on follows from the Trainer's counters. Lightning asks whether it can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to restore."""


def _as_it_is(task: Any) -> Any:
    return task
