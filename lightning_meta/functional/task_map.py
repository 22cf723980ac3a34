"""Run a function over a batch of tasks: together under `torch.vmap`, in chunks, or one after another."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.conv import _ConvNd

from lightning_meta.errors import (
    ArgumentTypeError,
    ConfigurationError,
    LightningMetaError,
    NetworkError,
    derivatives_explained,
    first_line,
)
from lightning_meta.functional.gradients import surrogate
from lightning_meta.functional.inner_loop import scaled_gradients
from lightning_meta.functional.kernels import Isolation, rounds
from lightning_meta.functional.learner import Learner
from lightning_meta.functional.network import failing_layer
from lightning_meta.functional.problem import Problem
from lightning_meta.task import Task, first_tensor, map_tensors, number_of_tasks, plain_inputs, tensors_of

TaskParallel = Literal["auto", "vmap", "loop"] | int
Result = TypeVar("Result")
Run = Callable[[Problem], object]
Outcome = Any
"""A NamedTuple of tensors `(B, ...)`, with `losses` `(B,)` among them."""
Gradients = tuple[Tensor, ...]

# Of a convolutional network on a CPU, by docs/performance.md. So many positions after the first convolution take about
# 1.2 GiB in Conv-4 with 64 filters; a task with more than the second number keeps all threads busy by itself, unless
# it is in bfloat16.
POSITIONS_TOGETHER = 4096 * 14 * 14
POSITIONS_ALONE = 50_000

# What layers and losses raise for inputs that they are not made for. Anything else is a mistake in somebody's code.
EXPLAINED = (RuntimeError, ValueError, TypeError, IndexError)


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
        ConfigurationError: `task_parallel` is none of these.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...], task_parallel: TaskParallel) -> None:
        is_size = isinstance(task_parallel, int) and not isinstance(task_parallel, bool) and task_parallel >= 1
        if not is_size and task_parallel not in ("auto", "vmap", "loop"):
            raise ConfigurationError(
                f"task_parallel={task_parallel!r} is not a way to run tasks: give 'auto', 'vmap', 'loop', or the "
                "number of tasks to run together, at least 1."
            )
        self.network = network
        self.names = names
        self.task_parallel = task_parallel
        self._convolution = next((layer for layer in network.modules() if isinstance(layer, _ConvNd)), None)
        self.isolation = Isolation()
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
        on_cpu = first_tensor(tasks.support.targets).device.type == "cpu"
        if self.task_parallel == "vmap" or self._convolution is None or not on_cpu:
            return batch
        # (B, examples, channels, positions...)
        positions = sum(x.shape[1] * math.prod(x.shape[3:]) for part in tasks for x in tensors_of(part.inputs))
        positions //= math.prod(self._convolution.stride)
        size = min(POSITIONS_TOGETHER // max(positions, 1), batch)
        return size if size > 1 and (positions <= POSITIONS_ALONE or rounds()) else 0

    def describe(self, tasks: Task) -> str:
        """How the tasks of this batch are run, in words."""
        together, batch = self.together(tasks), number_of_tasks(tasks)
        if together == 0:
            return f"{batch} tasks one after another"
        return f"all {batch} tasks together" if together == batch else f"{batch} tasks in chunks of {together}"

    def __call__(self, function: Callable[[Problem], Result], problem: Problem) -> Iterator[Result]:
        """Apply `function` to the batch, chunk by chunk.

        Args:
            function: Gets a problem of one or more tasks. It must have no effect but its result.
            problem: Of a batch of `B` tasks.

        Yields:
            The results, in the order of the tasks.

        Raises:
            NetworkError: The network cannot run on these inputs, or `torch.vmap` was asked for and cannot run the
                network; the message names the layer.
        """
        single, many = (
            Learner(self.network, self.names, vectorized=vectorized, isolation=self.isolation)
            for vectorized in (False, True)
        )
        if not all(isinstance(part.inputs, Tensor) for part in problem.tasks):
            problem = replace(problem, tasks=plain_inputs(problem.tasks))
        size = self.together(problem.tasks)
        for chunk in [problem.tasks] if size >= number_of_tasks(problem.tasks) else split(problem.tasks, size or 1):
            part = replace(problem, tasks=chunk, learner=many)
            if size and number_of_tasks(chunk) > 1 and self.vectorizes:
                try:
                    result = function(part)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    self._fall_back(function, part, single, error)
                else:
                    yield result
                    continue
            for task in split(chunk, 1):
                part = replace(problem, tasks=task, learner=single)
                try:
                    result = function(part)
                except Exception as error:
                    self.explain(function, part, error)
                    raise
                finally:
                    self.isolation.restore()
                yield result

    def meta_loss(
        self,
        learn: Callable[[Problem], Outcome],
        problem: Problem,
        trainable: Sequence[Tensor],
        scale: float = 1.0,
        gradient: Callable[[Problem], tuple[Outcome, Gradients]] | None = None,
    ) -> tuple[Tensor, Outcome]:
        """The mean loss of all tasks, with the meta-gradient for its gradient, and what was made of the tasks.

        Args:
            learn: Makes an outcome of a problem, whose `losses` `(B,)` are differentiable.
            problem: Of a batch of `B` tasks.
            trainable: What is meta-learned.
            scale: What the loss is multiplied by while it is differentiated: see `scaled_gradients`.
            gradient: Makes the outcome and its gradient at once, if that is not to be left to autograd.

        Returns:
            A scalar that requires grad through all of `trainable`, and the outcome of the batch, detached.
        """

        def run(part: Problem) -> tuple[Outcome, Gradients | None]:
            if gradient is not None:
                return gradient(part)
            outcome = learn(part)
            if not outcome.losses.requires_grad:
                raise ConfigurationError(
                    "The loss depends on nothing that is trained: its parameters are frozen, or the algorithm does not "
                    "use them, as ProtoNet a network's head."
                )
            if part.learner.vectorized and number_of_tasks(part.tasks) == count:
                return outcome, None
            # The graph of this chunk is freed here; only its gradient is kept.
            # Hooks run once, on the gradient of the whole batch.
            with derivatives_explained(), _without_hooks(trainable):
                gradients = scaled_gradients(outcome.losses.sum() / count, trainable, scale)
            return outcome._replace(losses=outcome.losses.detach()), gradients

        count = number_of_tasks(problem.tasks)
        outcomes, total = [], None
        for outcome, gradients in self(run, problem):
            outcomes.append(outcome)
            if gradients is not None:
                total = gradients if total is None else tuple(map(torch.add, total, gradients))
        if total is None:  # all tasks together
            return Touch.apply(outcome.losses.mean(), *trainable), outcome._replace(losses=outcome.losses.detach())
        whole = joined(outcomes)
        return surrogate(whole.losses.mean(), trainable, total), whole

    def _fall_back(self, function: Run, together: Problem, single: Learner, error: Exception) -> None:
        """Turn to the loop because of an error under vmap; raise where that is not the remedy."""
        if isinstance(error, ConfigurationError | ArgumentTypeError):
            raise error
        layer = failing_layer(self.network, lambda: function(together))
        part = together
        try:
            for task in split(together.tasks, 1):
                part = replace(together, tasks=task, learner=single)
                function(part)
        except Exception as own:  # it has nothing to do with vmap
            self.explain(function, part, own)
            raise own from None
        reason = f"torch.vmap cannot run {_named(layer)}: {first_line(error)}"
        if self.task_parallel != "auto":
            raise NetworkError(
                f"{reason}\nUse task_parallel='loop', or replace it by one that vmap can run."
            ) from error
        warnings.warn(f"{reason}\nRunning tasks one after another (task_parallel='loop').", stacklevel=2)
        self.vectorizes = False

    def explain(self, function: Run, problem: Problem, error: Exception) -> None:
        """Raise an error from under the network, its loss or its inner optimizer as one that says what failed.

        Raises:
            NetworkError: It came from there. Nothing is raised for other errors.
        """
        support = problem.tasks.support
        # Of a nesting a network may ask for what it has not, as one that takes its tensors as arguments of their own.
        nested = isinstance(error, AttributeError | KeyError) and not isinstance(support.inputs, Tensor)
        if isinstance(error, LightningMetaError | torch.OutOfMemoryError):
            return
        if not isinstance(error, EXPLAINED) and not nested:
            return
        layer = failing_layer(problem.learner.network, lambda: function(problem))
        inputs, targets = (
            ", ".join(f"{tuple(tensor.shape[1:])} of {tensor.dtype}" for tensor in tensors_of(part))
            for part in (support.inputs, support.targets)
        )
        raise NetworkError(
            f"{type(self.network).__name__}: {_named(layer)} failed: {first_line(error)}. A support set has inputs "
            f"{inputs} and targets {targets}."
            + (" Inputs are one argument, network(inputs): wrap a network that takes several." if nested else "")
        ) from error


class Touch(Function):
    """The same loss, connected to every parameter: those it does not depend on get a zero gradient instead of none.

    `Touch.apply(loss, *params)` takes a scalar and trainable parameters of any shapes. Distributed training waits for a
    gradient of each of them.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *params: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(*params)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: D102
        return grad, *(torch.zeros_like(param) for param in ctx.saved_tensors)


@contextmanager
def _without_hooks(params: Sequence[Tensor]) -> Iterator[None]:
    hooks = [param._backward_hooks for param in params]
    try:
        for param in params:
            param._backward_hooks = None
        yield
    finally:
        for param, own in zip(params, hooks, strict=True):
            param._backward_hooks = own


def _named(layer: str | None) -> str:
    return f"layer {layer}" if layer else "the network's inputs or outputs, the loss or the inner optimizer"


def split(tasks: Task, size: int) -> list[Task]:
    """Cut a batch of tasks into batches of at most `size` tasks."""
    if size >= number_of_tasks(tasks):
        return [tasks]

    def part(start: int) -> Task:
        return map_tensors(lambda t: t[start : start + size], tasks)

    return [part(start) for start in range(0, number_of_tasks(tasks), size)]


def joined(results: Sequence[Result]) -> Result:
    """The results of all chunks, nestings of tensors `(B, ...)`, as one, detached."""
    return map_tensors(lambda *parts: torch.cat(parts).detach(), *results)
