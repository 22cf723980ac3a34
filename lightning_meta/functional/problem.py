"""A batch of tasks as an inner loop sees it: losses and predictions of given parameters."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.backends import cudnn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_meta.functional.learner import Learner
from lightning_meta.functional.masks import filled
from lightning_meta.functional.network import Params
from lightning_meta.task import (
    Examples,
    Task,
    are_classes,
    map_tensors,
    number_of_tasks,
    present_classes,
)


class Objective(Protocol):
    """What tasks ask of an algorithm: where their data comes from, and how predictions are judged.

    A `MetaModule` is one: these are the hooks that users override.
    """

    def support_data(self, tasks: Task, params: Params, step: int) -> Examples:
        """The examples for inner step `step`, given the parameters before it."""
        ...

    def query_data(self, tasks: Task, params: Params) -> Examples:
        """The examples on which adapted parameters are judged."""
        ...

    @property
    def task_losses(self) -> Callable[..., Tensor]:
        """Maps predictions and targets, `(B, examples, ...)`, and a `mask` to the loss of each task, `(B,)`."""
        ...

    @property
    def task_metrics(self) -> Callable[..., dict[str, Tensor]]:
        """Maps predictions and targets, `(B, examples, ...)`, and a `mask` to values of each task, `(B,)` each."""
        ...


@dataclass(frozen=True)
class Problem:
    """A batch of tasks as losses and predictions of given parameters.

    Here, and nowhere else, parameters get those that belong to an inner step, examples are masked, and classes that a
    task has not are left out. Nothing that is given is changed.

    Attributes:
        tasks: The batch.
        learner: Runs the network.
        objective: Where data comes from and how predictions are judged.
        inner_losses: Maps predictions, targets and a `mask` to the loss of each task in the inner loop, `(B,)`.
        step_params: Parameters that belong to an inner step, `(steps + 1, *shape)` each, by the name of the network's
            parameter that they stand for; the last ones are for the query set.
        ways: How many classes every task has, if all have as many.
        classes: How many classes the task of the whole batch has that has most; 0 if there are none.
        outer_step: The number of the outer step, from 0.
        scale: What losses are multiplied by while they are differentiated: see `scaled_gradients`. The gradient of an
            inner gradient passes the inner graph with the outer scale divided by this one, so the square root of the
            outer scale keeps both alike away from zero.
        details: Whether values that cost extra time are worth computing.
    """

    tasks: Task
    learner: Learner
    objective: Objective
    inner_losses: Callable[..., Tensor]
    step_params: Mapping[str, Tensor] = field(default_factory=dict)
    ways: int | None = None
    classes: int = 0
    outer_step: int = 0
    scale: float = 1.0
    details: bool = False

    @cached_property
    def count(self) -> int:
        """The number of tasks, `B`."""
        return number_of_tasks(self.tasks)

    def initial(self, *, trainable: bool = False) -> tuple[Params, Params]:
        """One copy of the adapted parameters for each task, views of the network's own if `trainable`, and of buffers.

        What one task writes into its buffers no other reads.
        """
        network, count = self.learner.network, number_of_tasks(self.tasks)
        own = dict(network.named_parameters())
        names = [name for name in self.learner.names if own[name].requires_grad]  # some may have been frozen since
        params = {name: own[name].expand(count, *own[name].shape) for name in names}
        if not trainable:
            params = {name: param.detach().requires_grad_() for name, param in params.items()}
        return params, {n: b.detach().expand(count, *b.shape).clone() for n, b in network.named_buffers()}

    def support(self, params: Params, step: int) -> Examples:
        """The examples for an inner step, given the parameters before it."""
        examples = self.objective.support_data(self.tasks, params, step)
        return examples if examples.mask is None else filled(examples)

    def query(self, params: Params) -> Examples:
        """The examples on which adapted parameters are judged."""
        examples = self.objective.query_data(self.tasks, params)
        return examples if examples.mask is None else filled(examples)

    def at_step(self, params: Params, step: int) -> Params:
        """The parameters that the network runs with, once `step` inner steps have led to `params`."""
        if not self.step_params:
            return params
        tables = self.step_params.items()
        return params | {name: table[step].expand(self.count, *table[step].shape) for name, table in tables}

    def predict(
        self, params: Params, buffers: Params, examples: Examples, step: int, *, learner: Learner | None = None
    ) -> tuple[Any, Params]:
        """Predictions `(B, examples, ...)` of each task's parameters after `step` inner steps, and the buffers then.

        Args:
            params: Each task's parameters.
            buffers: Each task's buffers.
            examples: What to predict, `(B, examples, ...)`.
            step: How many inner steps have led to the parameters.
            learner: Another one, that normalizes otherwise.
        """
        if self.step_params:
            params = self.at_step(params, step)
        predictions, buffers = (learner or self.learner).predict(params, buffers, examples.inputs, examples.mask)
        if getattr(predictions, "shape", ())[2:] != (self.ways,):
            predictions = self.without_absent_classes(predictions)
        return predictions, buffers

    def without_absent_classes(self, predictions: Any) -> Any:
        """Logits `(B, examples, N)` with minus infinity for classes that a task has not; others as they are."""
        if not isinstance(predictions, Tensor) or predictions.dim() != 3 or not are_classes(self.tasks.support.targets):
            return predictions
        if predictions.shape[2] in (1, self.ways):
            return predictions
        present = present_classes(self.tasks, predictions.shape[2])
        return predictions.masked_fill(~present.unsqueeze(1), -torch.inf)

    def losses(self, predictions: Any, examples: Examples) -> Tensor:
        """The loss of each task, `(B,)`."""
        return self.objective.task_losses(predictions, examples.targets, mask=examples.mask)

    def metrics(self, prefix: str, predictions: Any, examples: Examples, suffix: str = "") -> dict[str, Tensor]:
        """The metrics of each task, `(B,)` each, named `<prefix>_<metric><suffix>` as in the logs; detached."""
        predictions = map_tensors(torch.detach, predictions)
        found = self.objective.task_metrics(predictions, examples.targets, mask=examples.mask)
        return {f"{prefix}_{name}{suffix}": value for name, value in found.items()}

    def judged(self, params: Params, buffers: Params, step: int) -> tuple[Tensor, dict[str, Tensor], Examples]:
        """The query losses of each task's parameters after `step` inner steps, `(B,)`, metrics, and the query examples.

        The losses are differentiable.
        """
        query = self.query(params)
        predictions, _ = self.predict(params, buffers, query, step)
        losses = self.objective.task_losses(predictions, query.targets, mask=query.mask)
        metrics = self.objective.task_metrics(map_tensors(torch.detach, predictions), query.targets, mask=query.mask)
        return losses, {f"query_{name}": value for name, value in metrics.items()}, query

    def support_losses(
        self, params: Params, buffers: Params, examples: Examples, step: int, *, twice: bool = False
    ) -> tuple[Tensor, Params]:
        """The loss of each task's parameters on support examples, `(B,)`, and the buffers afterwards.

        Args:
            params: Each task's parameters.
            buffers: Each task's buffers.
            examples: The support examples.
            step: How many inner steps have led to the parameters.
            twice: Whether it is differentiated twice: the kernels for speed of attention and of cuDNN's RNNs, which
                have no second derivative, are left out then.
        """
        off = cudnn.flags(enabled=False) if twice and self.learner.facts[2] else nullcontext()
        with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext(), off:
            predictions, buffers = self.predict(params, buffers, examples, step)
            return self.inner_losses(predictions, examples.targets, mask=examples.mask), buffers
