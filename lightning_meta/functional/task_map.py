"""Run a function over a batch of tasks: together under `torch.vmap`, in chunks, or one after another."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_meta.errors import NetworkError, first_line, is_torchs
from lightning_meta.functional.allocator import keep_freed_memory
from lightning_meta.functional.learner import Learner, failing_layer
from lightning_meta.task import Task, map_tensors, number_of_tasks, tensors_of

TaskParallel = Literal["auto", "vmap", "loop"] | int
Result = TypeVar("Result")

# Of a convolutional network on a CPU, by docs/performance.md. So many positions after the first convolution take about
# 1.2 GiB in Conv-4 with 64 filters; a task with more than the second number keeps all threads busy by itself.
POSITIONS_TOGETHER = 4096 * 14 * 14
POSITIONS_ALONE = 50_000


class TaskMap:
    """Maps a function over a batch of tasks; every way gives the same result.

    Args:
        network: The network that the function runs.
        names: The parameters that the inner loop changes; none for an algorithm without one.
        task_parallel: `"vmap"`: all tasks together, the most memory. A chunk size: that many together, which bounds
            the memory. `"loop"`: one after another, the least memory, and works for every network. `"auto"`: all tasks
            together; for a convolutional network on a CPU no more than have `POSITIONS_TOGETHER`, and those of more
            than `POSITIONS_ALONE` by the loop. It falls back to the loop where `torch.vmap` cannot run the network.

    Raises:
        ValueError: `task_parallel` is none of these.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...], task_parallel: TaskParallel) -> None:
        is_size = isinstance(task_parallel, int) and not isinstance(task_parallel, bool) and task_parallel >= 1
        if not is_size and task_parallel not in ("auto", "vmap", "loop"):
            raise ValueError(
                f"task_parallel={task_parallel!r} is not a way to run tasks: give 'auto', 'vmap', 'loop', or the "
                "number of tasks to run together, at least 1."
            )
        self.network = network
        self.names = names
        self.task_parallel = task_parallel
        self._convolution = next((layer for layer in network.modules() if isinstance(layer, _ConvNd)), None)
        self.vectorizes = True
        """Whether `torch.vmap` has run the network so far; `"auto"` turns to the loop where it has not."""

    def together(self, tasks: Task) -> int:
        """How many tasks of this batch run together under `torch.vmap`; 0 for the loop."""
        batch = number_of_tasks(tasks)
        if isinstance(self.task_parallel, int):
            return min(self.task_parallel, batch)
        if self.task_parallel == "loop" or not self.vectorizes:
            return 0
        if not self.names:  # weights that all tasks share
            return batch
        if self.task_parallel == "vmap" or self._convolution is None or tasks.support.targets.device.type != "cpu":
            return batch
        # (B, examples, channels, positions...)
        positions = sum(x.shape[1] * math.prod(x.shape[3:]) for part in tasks for x in tensors_of(part.inputs))
        positions //= math.prod(self._convolution.stride)
        size = min(POSITIONS_TOGETHER // max(positions, 1), batch)
        return size if size > 1 and positions <= POSITIONS_ALONE else 0

    def describe(self, tasks: Task) -> str:
        """How the tasks of this batch are run, in words."""
        together, batch = self.together(tasks), number_of_tasks(tasks)
        if together == 0:
            return f"{batch} tasks one after another"
        return f"all {batch} tasks together" if together == batch else f"{batch} tasks in chunks of {together}"

    def __call__(self, function: Callable[[Learner, Task], Result], tasks: Task) -> Iterator[Result]:
        """Apply `function` to the batch, chunk by chunk.

        Args:
            function: Gets a learner and a batch of one or more tasks. It must have no effect but its result.
            tasks: A batch of `B` tasks.

        Yields:
            The results, in the order of the tasks.

        Raises:
            NetworkError: The network cannot run on these inputs, or `torch.vmap` was asked for and cannot run the
                network; the message names the layer.
        """
        keep_freed_memory()
        single = Learner(self.network, self.names, vectorized=False)
        together = Learner(self.network, self.names, vectorized=True)
        for chunk in split(tasks, self.together(tasks) or 1):
            if self.together(tasks) and number_of_tasks(chunk) > 1:
                try:
                    result = function(together, chunk)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    self._fall_back(function, together, single, chunk, error)
                else:
                    yield result
                    continue
            for task in split(chunk, 1):
                try:
                    result = function(single, task)
                except Exception as error:
                    self._explain(function, single, task, error)
                    raise
                yield result

    def _fall_back(
        self,
        function: Callable[[Learner, Task], object],
        together: Learner,
        single: Learner,
        chunk: Task,
        error: Exception,
    ) -> None:
        """Turn to the loop because of an error under vmap; raise where that is not the remedy."""
        layer = failing_layer(self.network, lambda: function(together, chunk))
        try:
            for task in split(chunk, 1):
                function(single, task)
        except Exception as own:  # it has nothing to do with vmap
            self._explain(function, single, task, own)
            raise own from None
        reason = f"torch.vmap cannot run {_named(layer)}: {first_line(error)}"
        if self.task_parallel != "auto":
            raise NetworkError(
                f"{reason}\nUse task_parallel='loop', or replace it by one that vmap can run."
            ) from error
        warnings.warn(f"{reason}\nRunning tasks one after another (task_parallel='loop').", stacklevel=2)
        self.vectorizes = False

    def _explain(
        self, function: Callable[[Learner, Task], object], learner: Learner, task: Task, error: Exception
    ) -> None:
        """Raise an error from inside of torch as one that says what failed on what."""
        if isinstance(error, torch.OutOfMemoryError) or not is_torchs(error):
            return
        layer = failing_layer(self.network, lambda: function(learner, task))
        shapes = [f"{tuple(tensor.shape[1:])} of {tensor.dtype}" for tensor in tensors_of(task.support.inputs)]
        targets = task.support.targets
        raise NetworkError(
            f"{type(self.network).__name__}: {_named(layer)} failed: {first_line(error)}. A support set has "
            f"inputs {', '.join(shapes)} and targets {tuple(targets.shape[1:])} of {targets.dtype}."
        ) from error


def _named(layer: str | None) -> str:
    return f"layer {layer}" if layer else "the loss or the inner optimizer"


def split(tasks: Task, size: int) -> list[Task]:
    """Cut a batch of tasks into batches of at most `size` tasks."""
    if size >= number_of_tasks(tasks):
        return [tasks]

    def part(start: int) -> Task:
        return map_tensors(lambda t: t[start : start + size], tasks)

    return [part(start) for start in range(0, number_of_tasks(tasks), size)]
