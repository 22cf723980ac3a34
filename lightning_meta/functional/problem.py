"""A batch of tasks as an inner loop sees it: losses and predictions of given parameters."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.stateless import _reparametrize_module

from lightning_meta.functional.kernels import Isolation, WritesInPlace, task_kernels
from lightning_meta.functional.masks import filled
from lightning_meta.functional.network import Params, strip
from lightning_meta.functional.normalization import (
    batch_normalization,
    batch_normalized_layers,
    record_statistics,
    transductive_modes,
    with_stored_statistics,
)
from lightning_meta.functional.recompute import is_recorded
from lightning_meta.task import (
    Examples,
    Task,
    are_classes,
    first_tensor,
    map_tensors,
    number_of_tasks,
    present_classes,
    tensors_of,
)

ALL_TASKS = partial(torch.vmap, randomness="different")


def one_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lift a function of one task to a batch of one."""

    def of_batch(*args: Any) -> Any:
        return map_tensors(lambda t: t.unsqueeze(0), function(*map_tensors(lambda t: t.squeeze(0), args)))

    return of_batch


@dataclass(frozen=True)
class Learner:
    """Runs a network with every task's own parameters and buffers.

    Every tensor that goes in or out has a leading task dimension, and none that goes in is changed. Autograd is applied
    to the results, outside of `torch.vmap`: the sum of the tasks' losses, differentiated with respect to the tasks' own
    parameters, is each task's gradient. (Differentiating inside of `vmap` gives wrong second derivatives for affine
    batch, layer and instance norms.) Only the forward pass has to be one that `vmap` can run.

    Attributes:
        network: Called as `network(inputs)`.
        names: The parameters that the inner loop changes.
        vectorized: Whether tasks run together under `torch.vmap`; otherwise a batch holds one task.
        transductive: Whether normalization layers use the batch at hand, as MAML does in training and evaluation, or
            what their mode and their buffers say.
        isolation: Undoes what the network leaves in itself.
        records: Whether the buffers afterwards are to have the statistics of what batch norms are given.
    """

    network: nn.Module
    names: tuple[str, ...]
    vectorized: bool
    transductive: bool = True
    isolation: Isolation = field(default_factory=Isolation, compare=False)
    records: bool = False

    @cached_property
    def facts(self) -> tuple[dict[Any, bool], bool, bool, list[nn.Module]]:
        """The modes of normalization layers; whether a tensor has several names, if there is an RNN; all layers."""
        layers = list(self.network.modules())
        tensors = [
            id(tensor)
            for layer in layers
            for tensor in (*layer._parameters.values(), *layer._buffers.values())
            if tensor is not None
        ]
        has_norms = self.transductive and any(isinstance(layer, _NormBase) for layer in layers)
        modes = transductive_modes(self.network) if has_norms else {}
        return modes, len(set(tensors)) < len(tensors), any(isinstance(layer, nn.RNNBase) for layer in layers), layers

    def over_tasks(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Lift a function of one task to a batch: every tensor in and out gets a leading task dimension."""
        return ALL_TASKS(function) if self.vectorized else one_task(function)

    def call(self, params: Params, buffers: Params, inputs: Any, mask: Tensor | None = None) -> Any:
        """Predictions of one task's parameters, `(examples, ...)`; with buffers, also what is new among those."""
        modes, is_tied, _, layers = self.facts
        network = self.network

        def untouchable() -> Iterable[Tensor]:
            return (*network.parameters(), *params.values(), *tensors_of(inputs))

        kernels = task_kernels(self.vectorized, mask, layers, self.isolation, untouchable)
        state = {**params, **buffers}
        recorded: AbstractContextManager[Params] = record_statistics(network, mask) if self.records else nullcontext({})
        reparametrized = _reparametrize_module(network, state, tie_weights=is_tied)
        with recorded as statistics, batch_normalization(modes), kernels, reparametrized:
            predictions = network(inputs)
            # Images of one task have their channels last.
            if any(tensor.dim() > 3 for tensor in tensors_of(predictions)):
                predictions = map_tensors(torch.Tensor.contiguous, predictions)
            now = dict(network.named_buffers()) if buffers else {}
        if not buffers and not self.records:
            return predictions
        return predictions, {n: now[n] for n, b in buffers.items() if now.get(n, b) is not b} | statistics

    def predict(self, params: Params, buffers: Params, inputs: Any, mask: Tensor | None = None) -> tuple[Any, Params]:
        """Predictions of each task's own parameters on its own inputs, and the buffers afterwards.

        Args:
            params: `(B, *shape)` each.
            buffers: `(B, *shape)` each.
            inputs: `(B, examples, ...)`.
            mask: Which examples there are, `(B, examples)`; all if `None`.

        Returns:
            `(B, examples, ...)`, and new buffers, with what the network has written into them. Parameters that it has
            written into are among them: see `take_written`.
        """
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        masks = () if mask is None else (mask,)
        run = ALL_TASKS if self.vectorized else one_task
        copies = {}
        if self.isolation.writes:
            every = {n: p.expand(len(first_tensor(inputs)), *p.shape) for n, p in self.network.named_parameters()}
            params = copies = {name: param.clone() for name, param in (every | params).items()}
            inputs = map_tensors(torch.clone, inputs)
        try:
            found = run(self.call)(params, own, inputs, *masks)
            predictions, assigned = found if own or self.records else (found, {})
            return predictions, own | assigned | {n: c for n, c in copies.items() if n in self.names}
        except WritesInPlace:
            self.isolation.writes = True
            if is_recorded():  # from its beginning then, so that it does the same when it is computed again
                raise
            return self.predict(params, buffers, inputs, mask)
        except RuntimeError as error:
            if torch.is_grad_enabled() or "does not require grad" not in str(error):
                raise
        with torch.enable_grad():  # a network that differentiates in its forward pass
            predictions, buffers = self.predict(params, buffers, inputs, mask)
        return map_tensors(torch.detach, predictions), buffers

    def statistics(self, params: Params, buffers: Params, inputs: Any, mask: Tensor | None = None) -> Params:
        """Each task's batch-normalization statistics on inputs `(B, examples, ...)`: buffers by name, `(B, channels)`.

        The variance is the biased one.
        """
        _, found = replace(self, records=True).predict(params, buffers, inputs, mask)
        self.isolation.restore()
        names = [
            f"{n}.{kind}" for n in batch_normalized_layers(self.network) for kind in ("running_mean", "running_var")
        ]
        return {name: found[name] for name in names if name in found}

    def frozen_to(
        self, params: Params, buffers: Params, inputs: Any, mask: Tensor | None = None
    ) -> tuple["Learner", Params]:
        """A learner that normalizes with each task's statistics on `inputs` from now on, and the buffers it needs."""
        found = buffers | self.statistics(params, buffers, inputs, mask)
        network = with_stored_statistics(self.network)
        buffers = {name: found[name] for name, _ in network.named_buffers() if name in found}
        return replace(self, network=network, transductive=False), buffers

    def part(self, name: str) -> "Learner":
        """The learner of a submodule, such as `"body"`; its parameters have names without the prefix."""
        return replace(self, network=self.network.get_submodule(name), names=tuple(strip(self.names, name)))


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
