"""Start × inner optimizer × meta-gradient: the algorithms that adapt by an inner loop."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.base import Adapted, Algorithm, Fitted, MetaGradient, Outcome, Statistics
from lightning_meta.algorithms.evaluation import curve, details, evaluate, predicted
from lightning_meta.algorithms.start import Start
from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.fixed_body import FixedBody, has_fixed_body
from lightning_meta.functional.inner_loop import BatchUpdate, InnerObjective, Order, adapt, check_steps
from lightning_meta.functional.multi_step import multi_step_weights
from lightning_meta.functional.network import Params, dict_key, select_parameters
from lightning_meta.functional.problem import Problem
from lightning_meta.inner.base import InnerOptimizer, check_optimizer
from lightning_meta.task import map_tensors, tensors_of

OnStep = Callable[[int, Params, Params, Any], None]


class GradientBased(Algorithm):
    r"""Adapts a network's parameters to the support set by an inner loop, and learns from where that leads.

    Args:
        inner_optimizer: Makes the inner steps.
        meta_gradient: What is learned of the inner loop.
        start: What tasks start from in place of some of the network's parameters.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation; `inner_steps` if `None`.
        adapt_only: Which parameters the inner loop changes: see `select_parameters`.
        statistics: Whose statistics batch normalization uses in evaluation.
        recompute: Whether inner steps are computed again for the meta-gradient: see `adapt`.
        proximal: λ of a term :math:`\frac{\lambda}{2} \|\phi - \theta\|^2` that is added to the inner loop's loss.
        inner_batch_size: Support examples in an inner step of meta-training: see `mini_batch`.
        val_inner_batch_size: The same in evaluation.
        carries: Whether tasks start from the mean state in which the inner optimizer left the tasks before.
    """

    def __init__(
        self,
        inner_optimizer: InnerOptimizer,
        meta_gradient: MetaGradient,
        *,
        start: Start | None = None,
        inner_steps: int = 1,
        val_inner_steps: int | None = None,
        adapt_only: str | list[str] | None = None,
        statistics: Statistics = "query batch (transductive)",
        recompute: bool = False,
        proximal: float = 0.0,
        inner_batch_size: int | None = None,
        val_inner_batch_size: int | None = None,
        carries: bool = False,
    ) -> None:
        super().__init__(statistics, meta_gradient.objective)
        self.inner_optimizer = check_optimizer(inner_optimizer)
        self.meta_gradient = meta_gradient
        self.start = start
        self.inner_steps = check_steps("inner_steps", inner_steps)
        val_inner_steps = inner_steps if val_inner_steps is None else val_inner_steps
        self.val_inner_steps = check_steps("val_inner_steps", val_inner_steps)
        self.adapt_only = adapt_only
        self.recompute = recompute
        self.proximal = proximal
        self.inner_batch_size = inner_batch_size
        self.val_inner_batch_size = val_inner_batch_size
        self.carries = carries
        for name, size in {"inner_batch_size": inner_batch_size, "val_inner_batch_size": val_inner_batch_size}.items():
            if size is not None and size < 1:
                raise ConfigurationError(f"{name} must be at least 1, or None for the whole support set; got {size}.")
        self.state: Any = None
        """The state of the inner optimizer from which tasks start, if it is carried."""

    def select(self, network: nn.Module) -> tuple[str, ...]:
        """What `adapt_only` means, without parameters that belong to an inner step."""
        names = select_parameters(network, self.adapt_only)
        return tuple(name for name in names if dict_key(name) not in self.step_params)

    def build(self, network: nn.Module) -> None:
        """Let the inner optimizer make what it learns of each parameter."""
        own = dict(network.named_parameters())
        self.inner_optimizer.build({name: own[name].detach() for name in self.select(network)}, self.inner_steps)

    def compile_key(self, outer_step: int) -> Hashable | None:
        """The inner steps; mini-batches and carried states are others in every outer step."""
        changes = self.inner_batch_size is not None or self.carries
        key = self.meta_gradient.compile_key(outer_step)
        return None if changes or key is None else (key, self.inner_steps)

    def adapt(
        self, problem: Problem, steps: int, *, order: Order, training: bool = False, on_step: OnStep | None = None
    ) -> Adapted:
        """Run the inner loop on a batch of tasks: see `lightning_meta.functional.adapt`."""
        if len(self.step_params) and steps != self.inner_steps:
            raise ConfigurationError(
                f"per_step_norm=True has scales and shifts for {self.inner_steps} steps, not for {steps}."
            )
        size, draw = (self.inner_batch_size, problem.outer_step) if training else (self.val_inner_batch_size, 0)
        initial, buffers, state = self.initial(problem, trainable=order > 0)
        # What is recomputed has to do the same again, so it keeps no features.
        is_once = has_fixed_body(problem) and not self.recompute
        body = FixedBody(problem, differentiable=order == 2) if is_once else None
        objective = InnerObjective(problem, initial, order == 2, self.proximal, size, draw, fixed_body=body)
        params, buffers, state, losses = adapt(
            objective, initial, buffers, state, BatchUpdate(self.inner_optimizer, problem.learner.over_tasks), steps,
            order=order, scale=problem.scale, recompute=self.recompute, on_step=on_step,
        )  # fmt: skip
        support = objective.support or problem.support(initial, 0)
        some = tensors_of(support.targets)[0]
        inner_losses = torch.stack(losses, 1) if losses else torch.empty(problem.count, 0, device=some.device)
        return Adapted(params, buffers, inner_losses, state, support, steps)

    def initial(self, problem: Problem, *, trainable: bool) -> tuple[Params, Params, Any]:
        """Each task's parameters, buffers and state of the inner optimizer before the first step.

        The parameters are differentiable in what is meta-learned if `trainable`; otherwise they are leaves.
        """
        params, buffers = problem.initial(trainable=trainable)
        if self.start is not None:
            params = self.start(problem, params, trainable=trainable)
        init = self.inner_optimizer.init
        runs_on_batches = getattr(self.inner_optimizer.update, "elementwise", False)
        state = init(params) if runs_on_batches else problem.learner.over_tasks(init)(params)
        if self.state is not None:
            state = map_tensors(lambda new, kept: kept.to(new).expand_as(new), state, self.state)
        return params, buffers, state

    def learn(self, problem: Problem) -> Outcome:
        """Adapt as the meta-gradient asks for."""
        return self.meta_gradient(self, problem)

    def learned(self, problem: Problem, order: Order, on_step: OnStep | None = None) -> tuple[Outcome, Adapted]:
        """Adapt in meta-training: the query losses of adapted parameters, differentiable, and what to log."""
        adapted = self.adapt(problem, self.inner_steps, order=order, training=True, on_step=on_step)
        losses, metrics, query = problem.judged(adapted.params, adapted.buffers, adapted.steps)
        if problem.details:
            metrics |= details(self, problem, adapted, query, "query batch (transductive)")
        return Outcome(losses, metrics, adapted.inner_losses), adapted

    def carry(self, mean: Any) -> None:
        """Keep the mean state of the inner optimizer."""
        if self.carries:
            self.state = mean

    def carried(self) -> Any:
        """The state of the inner optimizer from which tasks start."""
        return self.state

    def restore(self, carried: Any, network: nn.Module) -> bool:
        """Start tasks from this state; from a fresh one if it is that of another inner optimizer."""
        if not self.carries:
            return True
        own = dict(network.named_parameters())
        fresh = self.inner_optimizer.init({name: own[name].detach() for name in self.select(network)})
        fits = carried is None or [t.shape for t in tensors_of(carried)] == [t.shape for t in tensors_of(fresh)]
        self.state = carried if fits else None
        return fits

    def evaluate(self, problem: Problem) -> Outcome:
        """Adapt without a meta-gradient, and measure before and after."""
        return evaluate(self, problem)

    def predict(self, problem: Problem) -> Any:
        """Adapt, and predict the query sets."""
        adapted = self.adapt(problem, self.val_inner_steps, order=0)
        with torch.no_grad():
            return predicted(problem, adapted, problem.query(adapted.params), self.statistics)

    def fit(self, problem: Problem, steps: int | None = None) -> Fitted:
        """Adapt to the support set of a single task."""
        adapted = self.adapt(problem, self.val_inner_steps if steps is None else steps, order=0)
        return Fitted(problem.learner.network, adapted.buffers | problem.at_step(adapted.params, adapted.steps))

    def curve(self, problem: Problem, steps: int | None = None) -> dict[str, Tensor]:
        """Query metrics after each inner step, transductively: `(B, steps + 1)` each, the first before adaptation."""
        return curve(self, problem, self.val_inner_steps if steps is None else steps)


@dataclass(frozen=True)
class Unrolled:
    """Differentiates the query loss of the adapted parameters through all inner steps.

    Papers: Finn, Abbeel, Levine 2017, arXiv:1703.03400; the multi-step loss: Antoniou, Edwards, Storkey 2019,
    arXiv:1810.09502.

    Attributes:
        first_order: Whether inner gradients are taken for constants.
        first_order_steps: For how many outer steps at the beginning they are in any case.
        multi_step_loss_steps: For how many outer steps the query losses after all inner steps count: see
            `multi_step_weights`.
    """

    first_order: bool = False
    first_order_steps: int = 0
    multi_step_loss_steps: int = 0
    objective: ClassVar[str] = "query_loss"

    def order(self, outer_step: int) -> Order:
        """The order of the meta-gradient in an outer step."""
        return 1 if self.first_order or outer_step < self.first_order_steps else 2

    def compile_key(self, outer_step: int) -> Hashable | None:
        """The order; the weights of a multi-step loss change with every outer step."""
        return None if outer_step < self.multi_step_loss_steps else self.order(outer_step)

    def __call__(self, algorithm: "GradientBased", problem: Problem) -> Outcome:
        """Adapt; the objective is the query loss after the last inner step or, for a time, after every one."""
        order, outer_step = self.order(problem.outer_step), problem.outer_step
        if outer_step >= self.multi_step_loss_steps:
            return algorithm.learned(problem, order)[0]
        early: list[Tensor] = []

        def measure(step: int, params: Params, buffers: Params, _: Any) -> None:
            if 0 < step < algorithm.inner_steps:
                early.append(problem.judged(params, buffers, step)[0])

        outcome, _ = algorithm.learned(problem, order, measure)
        weights = multi_step_weights(algorithm.inner_steps, outer_step / self.multi_step_loss_steps)
        weighted = torch.stack([w * losses for w, losses in zip(weights, [*early, outcome.losses], strict=True)]).sum(0)
        return outcome._replace(losses=outcome.losses.detach() + weighted - weighted.detach())
