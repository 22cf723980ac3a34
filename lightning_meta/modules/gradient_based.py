"""Algorithms that adapt by an inner loop of gradient steps."""

import copy
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_meta.functional.learner import Learner, Params
from lightning_meta.functional.normalization import batch_normalized_layers
from lightning_meta.modules.adapting import Adapted, AdaptingModule
from lightning_meta.modules.checks import check_steps
from lightning_meta.modules.deployment import adapted_network
from lightning_meta.modules.outcome import Outcome, with_gradients
from lightning_meta.task import Examples, Task, map_tensors, number_of_tasks


class GradientBasedModule(AdaptingModule):
    """Base of the algorithms with an inner loop.

    As it stands it descends the query loss of the adapted parameters, differentiated through the inner loop; what
    subclasses change are `order`, the hooks around the inner loop, or `learn`.

    Args:
        network: Called as `network(inputs)`.
        inner_optimizer: Adapts the parameters; plain gradient descent if `None`.
        inner_steps: Steps of the inner loop in meta-training.
        val_inner_steps: Steps in validation, test and prediction; `inner_steps` if `None`.
        transductive: Whether batch normalization in evaluation uses the statistics of the query batch (as in the MAML
            paper), or those of the support set under the adapted parameters, so that every query example is predicted
            by itself.
        inner_optimizer_lr: The outer learning rate of what the inner optimizer learns, such as rates or an LSTM; that
            of `optimizer` if `None`.
        checkpoint_inner_steps: Keep only the parameters after each inner step for the meta-gradient, and compute the
            step again when it is needed: bounds the memory of many inner steps, for more time.
        kwargs: See `MetaModule`.

    Raises:
        ValueError: A number of steps is negative, or `inner_optimizer_lr` is, or there is nothing to learn at it.
        TypeError: `inner_optimizer` is not an `InnerOptimizer`.
    """

    without_query_batch = "support set"
    """Whose statistics batch normalization uses in an evaluation that is not transductive."""

    # Meta-training.

    def learn(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt to the support sets; the query losses of the adapted parameters are the objective."""
        adapted = self.adapt(learner, tasks, self.inner_steps, order=self.order)
        return self.judged(learner, tasks, adapted)

    def judged(self, learner: Learner, tasks: Task, adapted: Adapted) -> Outcome:
        """The query losses of adapted parameters, differentiable, and what to log."""
        query = self.query_data(tasks, adapted.params)
        predictions = learner.predict(self.params_at(adapted.params, adapted.steps), adapted.buffers, query.inputs)
        losses = self.task_losses(learner, predictions, query.targets)
        metrics = self.task_metrics(predictions.detach(), query.targets)
        metrics = {f"query_{name}": value for name, value in metrics.items()}
        if self.logs_this_step:
            metrics |= self.support_and_before(learner, tasks, adapted)
        return Outcome(losses, metrics, adapted.inner_losses)

    # Evaluation.

    def evaluate(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt without a meta-gradient, and measure before and after."""
        adapted = self.adapt(learner, tasks, self.val_inner_steps, order=0)
        with torch.no_grad():
            query = self.query_data(tasks, adapted.params)
            predictions = self.query_predictions(learner, tasks, adapted, query, self.transductive)
            losses = self.task_losses(learner, predictions, query.targets)
            metrics = {f"query_{name}": value for name, value in self.task_metrics(predictions, query.targets).items()}
        return Outcome(losses, metrics | self.support_and_before(learner, tasks, adapted), adapted.inner_losses)

    @torch.no_grad()
    def support_and_before(self, learner: Learner, tasks: Task, adapted: Adapted) -> dict[str, Tensor]:
        """The support loss after adaptation, and every metric before it."""
        initial = self.initial_params(learner, tasks, trainable=False)
        buffers = learner.initial_buffers(number_of_tasks(tasks))
        query = self.query_data(tasks, initial)
        start = Adapted(initial, buffers, adapted.inner_losses[:, :0], ())
        before = self.query_predictions(learner, tasks, start, query, transductive=self.training or self.transductive)
        support = self.support_data(tasks, adapted.params, adapted.steps)
        params = self.params_at(adapted.params, adapted.steps)
        support_after = learner.predict(params, dict(adapted.buffers), support.inputs)
        values = {
            "support_loss": self.task_losses(learner, support_after, support.targets),
            "query_loss_before": self.task_losses(learner, before, query.targets),
        }
        if adapted.steps:
            values["support_loss_before"] = adapted.inner_losses[:, 0]
        metrics = self.task_metrics(before, query.targets)
        return values | {f"query_{name}_before": value for name, value in metrics.items()}

    def on_test_start(self) -> None:
        """Say which statistics batch normalization uses."""
        if batch_normalized_layers(self.network):
            source = "query batch (transductive)" if self.transductive else self.without_query_batch
            rank_zero_info(f"In this evaluation, batch normalization uses the statistics of the {source}.")

    def predict(self, learner: Learner, tasks: Task) -> Tensor:
        """Adapt, and predict the query sets."""
        adapted = self.adapt(learner, tasks, self.val_inner_steps, order=0)
        with torch.no_grad():
            query = self.query_data(tasks, adapted.params)
            return self.query_predictions(learner, tasks, adapted, query, self.transductive)

    def query_predictions(
        self, learner: Learner, tasks: Task, adapted: Adapted, query: Examples, transductive: bool
    ) -> Tensor:
        """Predictions of adapted parameters for query sets, `(B, queries, ...)`."""
        params, buffers = self.params_at(adapted.params, adapted.steps), dict(adapted.buffers)
        if not transductive and batch_normalized_layers(self.network):
            support = self.support_data(tasks, adapted.params, adapted.steps)
            learner, buffers = learner.frozen_to(params, buffers, support.inputs)
        predictions: Tensor = learner.predict(params, buffers, query.inputs)
        return predictions

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
        steps = self.val_inner_steps if steps is None else check_steps("steps", steps)

        def adapted_params(learner: Learner, task: Task) -> tuple[Params, Params]:
            adapted = self.adapt(learner, task, steps, order=0)
            return self.params_at(adapted.params, adapted.steps), adapted.buffers

        return adapted_network(self.network, self.adapted_names, adapted_params, inputs, targets, transductive)

    def adaptation_curve(self, tasks: Task, steps: int | None = None) -> dict[str, Tensor]:
        """Query metrics after each inner step, transductively.

        Args:
            tasks: A batch of `B` tasks.
            steps: Inner steps; `val_inner_steps` if `None`.

        Returns:
            For `query_loss` and each metric `(B, steps + 1)` values, the first before adaptation.
        """
        steps = self.val_inner_steps if steps is None else check_steps("steps", steps)

        def run(learner: Learner, tasks: Task) -> dict[str, Tensor]:
            learner = replace(learner, network=copy.deepcopy(self.network).eval())
            buffers = learner.initial_buffers(number_of_tasks(tasks))
            rows: list[dict[str, Tensor]] = []

            @torch.no_grad()
            def measure(step: int, params: Params, _: Any) -> None:
                query = self.query_data(tasks, params)
                predictions = learner.predict(self.params_at(params, step), dict(buffers), query.inputs)
                metrics = {"loss": self.task_losses(learner, predictions, query.targets)}
                rows.append(metrics | self.task_metrics(predictions, query.targets))

            self.adapt(learner, tasks, steps, order=0, on_step=measure)
            return {f"query_{name}": torch.stack([row[name] for row in rows], 1) for name in rows[0]}

        with with_gradients(tasks) as tasks:
            parts = list(self.task_map(run, tasks))
        return map_tensors(lambda *pieces: torch.cat(pieces), *parts)
