"""Algorithms that adapt by an inner loop of gradient steps."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_meta.functional.inner_loop import Order, adapt
from lightning_meta.functional.learner import Learner, Params, twice_differentiable
from lightning_meta.functional.normalization import (
    batch_normalized_layers,
    record_statistics,
    with_batch_statistics,
    with_stored_statistics,
)
from lightning_meta.inner import SGD, InnerOptimizer
from lightning_meta.modules.base import MetaModule
from lightning_meta.modules.checks import check_support_set, check_updated
from lightning_meta.modules.outcome import Outcome, with_gradients
from lightning_meta.task import Examples, Task, map_tensors, number_of_tasks


class Adapted(NamedTuple):
    """What the inner loop leaves: each task's parameters and buffers, and its support losses `(B, steps)`."""

    params: Params
    buffers: Params
    inner_losses: Tensor


class GradientBasedModule(MetaModule):
    """Base of the algorithms with an inner loop.

    Args:
        network: Called as `network(inputs)`.
        inner_optimizer: Adapts the parameters; plain gradient descent if `None`.
        inner_steps: Steps of the inner loop in meta-training.
        val_inner_steps: Steps in validation, test and prediction; `inner_steps` if `None`.
        transductive: Whether batch normalization in evaluation uses the statistics of the query batch (as in the MAML
            paper), or those of the support set under the adapted parameters, so that every query example is predicted
            by itself.
        kwargs: See `MetaModule`.

    Raises:
        ValueError: A number of steps is negative.
        TypeError: `inner_optimizer` is not an `InnerOptimizer`.
    """

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 1,
        val_inner_steps: int | None = None,
        transductive: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if inner_optimizer is not None and not isinstance(inner_optimizer, InnerOptimizer):
            raise TypeError(
                f"inner_optimizer must be a lightning_meta.InnerOptimizer such as SGD(lr=0.1), got "
                f"{inner_optimizer!r}. torch's optimizers write in place and cannot be differentiated through."
            )
        self.inner_optimizer = SGD() if inner_optimizer is None else inner_optimizer
        self.inner_steps = _check_steps("inner_steps", inner_steps)
        self.val_inner_steps = (
            inner_steps if val_inner_steps is None else _check_steps("val_inner_steps", val_inner_steps)
        )
        self.transductive = transductive

    def objects(self) -> dict[str, str]:
        """Describe the inner optimizer, too."""
        return super().objects() | {"inner_optimizer": str(self.inner_optimizer)}

    # Where a task's data is asked for. In reinforcement learning it is collected here, with the adapted parameters.

    def support_data(self, tasks: Task, params: Params, step: int) -> Examples:
        """The examples for inner step `step`, given the parameters before it."""
        return tasks.support

    def query_data(self, tasks: Task, params: Params) -> Examples:
        """The examples on which adapted parameters are judged."""
        return tasks.query

    def adapt(
        self,
        learner: Learner,
        tasks: Task,
        steps: int,
        *,
        order: Order,
        on_step: Callable[[int, Params], None] | None = None,
    ) -> Adapted:
        """Run the inner loop on a batch of tasks: see `lightning_meta.functional.adapt`."""
        count = number_of_tasks(tasks)
        params = learner.initial_params(count, trainable=order > 0)
        buffers = learner.initial_buffers(count)

        def objective(params: Params, step: int) -> Tensor:
            support = self.support_data(tasks, params, step)
            with twice_differentiable(learner.network) if order == 2 else nullcontext():
                predictions = learner.predict(params, buffers, support.inputs)
                return self.task_losses(learner, predictions, support.targets)

        def update(grads: Params, state: Any, params: Params, *, loss: Tensor, step: int) -> tuple[Params, Any]:
            def of_one_task(grads: Params, state: Any, params: Params, loss: Tensor) -> tuple[Params, Any]:
                updated, state = self.inner_optimizer.update(grads, state, params, loss=loss, step=step)
                check_updated(self.inner_optimizer, params, updated)
                return updated, state

            new: tuple[Params, Any] = learner.over_tasks(of_one_task)(grads, state, params, loss)
            return new

        state = learner.over_tasks(self.inner_optimizer.init)(params)
        params, losses = adapt(objective, params, state, update, steps, order=order, on_step=on_step)
        inner_losses = torch.stack(losses, 1) if losses else torch.empty(count, 0, device=tasks.support.targets.device)
        return Adapted(params, buffers, inner_losses)

    def evaluate(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt without a meta-gradient, and measure before and after."""
        adapted = self.adapt(learner, tasks, self.val_inner_steps, order=0)
        with torch.no_grad():
            query = self.query_data(tasks, adapted.params)
            predictions = self._query_predictions(learner, tasks, adapted, query, self.transductive)
            losses = self.task_losses(learner, predictions, query.targets)
            metrics = {f"query_{name}": value for name, value in self.task_metrics(predictions, query.targets).items()}
        return Outcome(losses, metrics | self._support_and_before(learner, tasks, adapted), adapted.inner_losses)

    @torch.no_grad()
    def _support_and_before(self, learner: Learner, tasks: Task, adapted: Adapted) -> dict[str, Tensor]:
        """The support loss after adaptation, and every metric before it."""
        count = number_of_tasks(tasks)
        initial = learner.initial_params(count, trainable=False)
        buffers = learner.initial_buffers(count)
        query = self.query_data(tasks, initial)
        start = Adapted(initial, buffers, adapted.inner_losses)
        before = self._query_predictions(learner, tasks, start, query, transductive=self.training or self.transductive)
        support = self.support_data(tasks, adapted.params, adapted.inner_losses.shape[1])
        support_after = learner.predict(adapted.params, dict(adapted.buffers), support.inputs)
        values = {
            "support_loss": self.task_losses(learner, support_after, support.targets),
            "query_loss_before": self.task_losses(learner, before, query.targets),
        }
        if adapted.inner_losses.shape[1]:
            values["support_loss_before"] = adapted.inner_losses[:, 0]
        metrics = self.task_metrics(before, query.targets)
        return values | {f"query_{name}_before": value for name, value in metrics.items()}

    def on_test_start(self) -> None:
        """Say which statistics batch normalization uses."""
        if batch_normalized_layers(self.network):
            source = "query batch (transductive)" if self.transductive else "support set"
            rank_zero_info(f"In this evaluation, batch normalization uses the statistics of the {source}.")

    def predict(self, learner: Learner, tasks: Task) -> Tensor:
        """Adapt, and predict the query sets."""
        adapted = self.adapt(learner, tasks, self.val_inner_steps, order=0)
        with torch.no_grad():
            query = self.query_data(tasks, adapted.params)
            return self._query_predictions(learner, tasks, adapted, query, self.transductive)

    def _query_predictions(
        self, learner: Learner, tasks: Task, adapted: Adapted, query: Examples, transductive: bool
    ) -> Tensor:
        buffers = dict(adapted.buffers)
        if not transductive and batch_normalized_layers(self.network):
            support = self.support_data(tasks, adapted.params, adapted.inner_losses.shape[1])
            network = with_stored_statistics(self.network)
            statistics = self._support_statistics(learner, adapted, support.inputs)
            buffers = {
                name: (buffers | statistics)[name]
                for name, _ in network.named_buffers()
                if name in buffers or name in statistics
            }
            learner = replace(learner, network=network, transductive=False)
        predictions: Tensor = learner.predict(adapted.params, buffers, query.inputs)
        return predictions

    def _support_statistics(self, learner: Learner, adapted: Adapted, inputs: Any) -> Params:
        """Each task's batch-normalization statistics on its support set, under its adapted parameters."""

        def of_one_task(params: Params, buffers: Params, inputs: Any) -> Params:
            with record_statistics(learner.network) as statistics:
                learner.call(params, buffers, inputs)
            return statistics

        buffers = {name: buffer.clone() for name, buffer in adapted.buffers.items()}
        found: Params = learner.over_tasks(of_one_task)(adapted.params, buffers, inputs)
        return found

    def adapt_to(
        self, inputs: Any, targets: Tensor, steps: int | None = None, *, transductive: bool = False
    ) -> nn.Module:
        """Adapt to one labelled support set and return a network to predict with. The module itself is unchanged.

        Args:
            inputs: Support inputs `(examples, ...)`, as the network takes them.
            targets: Their targets, `(examples, ...)`.
            steps: Inner steps; `val_inner_steps` if `None`.
            transductive: Normalize with the statistics of whatever batch is predicted. By default batch-normalization
                statistics are frozen to the support set, so that one example at a time gets the same prediction as
                many.

        Returns:
            A self-contained copy of the network in evaluation mode, with the adapted parameters and nothing that
            requires grad. It works under any grad mode.

        Raises:
            ValueError: Inputs and targets differ in length, there are none, or `steps` is negative.
        """
        tensors: list[Tensor] = []
        map_tensors(lambda t: tensors.append(t) or t, inputs)  # type: ignore[func-returns-value]
        check_support_set(tensors, targets)
        steps = self.val_inner_steps if steps is None else _check_steps("steps", steps)
        examples = map_tensors(lambda t: t.detach().to(self.device).unsqueeze(0), Examples(inputs, targets))
        with with_gradients(Task(examples, examples)) as task:
            network = copy.deepcopy(self.network).eval()
            learner = Learner(network, self.adapted_names, vectorized=False)
            adapted = self.adapt(learner, task, steps, order=0)
            final = adapted.buffers | adapted.params
            if not transductive and batch_normalized_layers(network):
                with torch.no_grad():
                    final |= self._support_statistics(learner, adapted, task.support.inputs)
            network = (with_batch_statistics if transductive else with_stored_statistics)(network)
            own = dict(network.named_parameters()) | dict(network.named_buffers())
            with torch.no_grad():
                for name, tensor in final.items():
                    if name in own:
                        own[name].copy_(tensor.squeeze(0))
        return network.requires_grad_(False)

    def adaptation_curve(self, tasks: Task, steps: int | None = None) -> dict[str, Tensor]:
        """Query metrics after each inner step, transductively.

        Args:
            tasks: A batch of `B` tasks.
            steps: Inner steps; `val_inner_steps` if `None`.

        Returns:
            For `query_loss` and each metric `(B, steps + 1)` values, the first before adaptation.
        """
        steps = self.val_inner_steps if steps is None else _check_steps("steps", steps)

        def run(learner: Learner, tasks: Task) -> dict[str, Tensor]:
            learner = replace(learner, network=copy.deepcopy(self.network).eval())
            buffers = learner.initial_buffers(number_of_tasks(tasks))
            rows: list[dict[str, Tensor]] = []

            @torch.no_grad()
            def measure(_: int, params: Params) -> None:
                query = self.query_data(tasks, params)
                predictions = learner.predict(params, dict(buffers), query.inputs)
                metrics = {"loss": self.task_losses(learner, predictions, query.targets)}
                rows.append(metrics | self.task_metrics(predictions, query.targets))

            self.adapt(learner, tasks, steps, order=0, on_step=measure)
            return {f"query_{name}": torch.stack([row[name] for row in rows], 1) for name in rows[0]}

        with with_gradients(tasks) as tasks:
            parts = list(self.task_map(run, tasks))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _check_steps(name: str, steps: int) -> int:
    if steps < 0:
        raise ValueError(f"{name} must be 0 or more, got {steps}.")
    return steps
