"""The inner loop: adapt parameters to a support set, a pure function of a dict of parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lightning_meta.errors import ArgumentTypeError, ConfigurationError, NetworkError
from lightning_meta.functional.conjugate_gradient import inner
from lightning_meta.functional.fixed_body import FixedBody
from lightning_meta.functional.mini_batches import mini_batch
from lightning_meta.functional.network import Params, take_written
from lightning_meta.functional.problem import Problem
from lightning_meta.functional.recompute import recomputed
from lightning_meta.task import Examples

Order = Literal[0, 1, 2]
"""What the adapted parameters are differentiable in: nothing (0), the initial parameters with the gradients taken for
constants (1, FOMAML), or all of it (2)."""


class Update(Protocol):
    """One inner step of an inner optimizer over a batch of tasks."""

    def __call__(self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int) -> tuple[Params, Any]:
        """Return the new parameters and the new state."""
        ...


def scaled_gradients(
    output: Tensor,
    inputs: Sequence[Tensor],
    scale: float = 1.0,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    r"""The gradient of a scalar, computed as that of `scale` times the scalar and divided by `scale`.

    Values on the way are `scale` times as large, so that under float16, whose smallest number is 6e-8, small ones do
    not become zero. Paper: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.

    Args:
        output: A scalar.
        inputs: Tensors of any shape that require grad, float32 or float64; the result is zero where `output` does not
            depend on them.
        scale: A positive number.
        create_graph: Whether the result is differentiable.
        retain_graph: Whether the graph is kept; if `None`, where the result is differentiable.

    Returns:
        The gradient of each input, of its shape and type.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> scaled_gradients(x.square(), [x], 1024.0)
        (tensor(6.),)
    """
    if scale != 1:
        output = output.to(torch.promote_types(output.dtype, torch.float32)) * scale
    gradients = torch.autograd.grad(
        output, inputs, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    return gradients if scale == 1 else tuple(gradient / scale for gradient in gradients)


def adapt(
    objective: Callable[[Params, Params, int], tuple[Tensor, Params]],
    params: Params,
    buffers: Params,
    state: Any,
    update: Update,
    steps: int,
    *,
    order: Order = 2,
    scale: float = 1.0,
    recompute: bool = False,
    first: int = 0,
    on_step: Callable[[int, Params, Params, Any], None] | None = None,
) -> tuple[Params, Params, Any, list[Tensor]]:
    r"""Adapt every task's parameters by `steps` steps of an inner optimizer.

    For gradient descent at rate α this is, for every task at once,

    .. math:: \phi_0 = \theta, \qquad \phi_{i+1} = \phi_i - \alpha \nabla_{\phi_i} L(\phi_i).

    Paper: Finn, Abbeel, Levine 2017, arXiv:1703.03400, algorithm 1, lines 4 to 7.

    Args:
        objective: Maps parameters, buffers and the number of the step to each task's support loss, `(B,)`, and the
            buffers afterwards.
        params: Initial parameters, each `(B, *shape)`.
        buffers: Initial buffers, each `(B, *shape)`.
        state: The initial state of the inner optimizer.
        update: The inner optimizer's step.
        steps: Number of inner steps; 0 returns what is given.
        order: Order of the meta-gradient that the result carries.
        scale: What the objective is multiplied by while gradients are computed: see `scaled_gradients`.
        recompute: Whether only each step's parameters are kept, and the meta-gradient computes the step again
            (gradient checkpointing): with many steps much less memory, for about a third more time.
        first: The number of the first step.
        on_step: Called with the number of steps done, the parameters, the buffers and the state; first with 0 and the
            initial ones.

    Returns:
        The adapted parameters, the buffers, the inner optimizer's state, and the support losses `(B,)` before each
        step, detached.
    """
    losses = []
    names = list(params)
    if order > 0:
        # Where initial parameters depend on one another (a head on the body), inner gradients do not follow that.
        params = {name: param.view_as(param) for name, param in params.items()}

    def one_step(params: Params, buffers: Params, state: Any, step: int) -> tuple[Params, Params, Any, Tensor]:
        loss, buffers = objective(params, buffers, step)
        # Each task's loss depends on its own slice only: the gradient of the sum holds every task's gradient.
        gradients = scaled_gradients(loss.sum(), [params[name] for name in names], scale, create_graph=order == 2)
        grads = dict(zip(names, gradients, strict=True))
        if params.keys() & buffers.keys():
            params, buffers = take_written(params, buffers)
        with torch.set_grad_enabled(order > 0):
            params, state = update(grads, state, params, loss=loss.detach(), step=step)
        return params, buffers, state, loss.detach()

    for step in range(first, first + steps):
        if on_step is not None:
            on_step(step, params, buffers, state)
        if recompute and order == 2:
            params, buffers, state, loss = recomputed(one_step, params, buffers, state, step)
        else:
            params, buffers, state, loss = one_step(params, buffers, state, step)
        losses.append(loss)
        if order == 0:
            params = {name: param.requires_grad_() for name, param in params.items()}
    if on_step is not None:
        on_step(first + steps, params, buffers, state)
    return params, buffers, state, losses


@dataclass
class InnerObjective:
    r"""What an inner loop descends: the loss of each task's parameters on support examples.

    Attributes:
        problem: The tasks.
        initial: Each task's parameters before the first step, `(B, *shape)` each.
        twice: Whether it is differentiated twice.
        proximal: λ of a term :math:`\frac{\lambda}{2} \|\phi - \theta\|^2` that is added.
        batch_size: How many support examples count in a step; all if `None`: see `mini_batch`.
        draw: Which mini-batches are drawn.
        given: The support examples, if the problem is not to be asked for them.
        fixed_body: Computes the losses, where inner steps change the network's head only.
        support: The support examples of the last step, all of them.
    """

    problem: Problem
    initial: Params
    twice: bool = False
    proximal: float = 0.0
    batch_size: int | None = None
    draw: int = 0
    given: Examples | None = None
    fixed_body: FixedBody | None = None
    support: Examples | None = None

    def __call__(self, params: Params, buffers: Params, step: int) -> tuple[Tensor, Params]:
        """The loss of each task after `step` inner steps, `(B,)`, and the buffers afterwards."""
        batch = self.support = self.given or self.problem.support(params, step)
        if self.batch_size is not None:
            batch = mini_batch(batch, step, self.batch_size, self.draw)
        run = self.fixed_body or self.problem
        losses, buffers = run.support_losses(params, buffers, batch, step, twice=self.twice)
        if self.proximal:
            ways = {name: param - self.initial[name] for name, param in params.items()}
            losses = losses + self.proximal / 2 * inner(ways, ways)
        return losses, buffers


@dataclass(frozen=True)
class BatchUpdate:
    """The step of an inner optimizer, which is that of one task, for all tasks at once.

    Attributes:
        optimizer: An `InnerOptimizer`.
        over_tasks: Lifts a function of one task to a batch; not used for an elementwise `update`, which runs on a batch
            as it is.
    """

    optimizer: Any
    over_tasks: Callable[[Callable[..., Any]], Callable[..., Any]]

    def __call__(self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int) -> tuple[Params, Any]:
        """Make the step: see `InnerOptimizer.update`.

        Raises:
            ArgumentTypeError: The optimizer returns something else than parameters and a state.
            ConfigurationError: It returns other parameters than it was given.
            NetworkError: It writes into what it is given.
        """

        def of_one_task(grads: Params, state: Any, params: Params, loss: Tensor) -> tuple[Params, Any]:
            result = self.optimizer.update(grads, state, params, loss=loss, step=step)
            return _check_result(self.optimizer, params, result)

        versions = [param._version for param in params.values()]
        with torch.autocast(loss.device.type, enabled=False):
            # Bound methods and overridden ones alike: a subclass that overrides `update` has another function there.
            if getattr(self.optimizer.update, "elementwise", False):
                new = self.optimizer.update(grads, state, params, loss=loss, step=step)
                fits = isinstance(new, tuple) and len(new) == 2 and isinstance(new[0], dict)
                if not fits or {n: p.shape for n, p in new[0].items()} != {n: p.shape for n, p in params.items()}:
                    _check_result(self.optimizer, params, new)
            else:
                new = self.over_tasks(of_one_task)(grads, state, params, loss)
        changed = [name for (name, p), v in zip(params.items(), versions, strict=True) if p._version != v]
        if changed:
            raise NetworkError(
                f"{type(self.optimizer).__name__}.update has written in place into {', '.join(changed)}, which the "
                "network and the other tasks share, so the network is not what it was. Return new tensors, such as "
                "param - lr * grad."
            )
        return new  # type: ignore[no-any-return]


def _check_result(optimizer: nn.Module, params: Params, result: Any) -> tuple[Params, Any]:
    """Refuse what an inner optimizer returns if it is not the parameters that it was given, and a state."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], dict):
        raise ArgumentTypeError(
            f"{type(optimizer).__name__}.update must return two things, the new parameters by name and the new state; "
            f"it returned a {type(result).__name__}."
        )
    updated = result[0]
    wrong = sorted(params.keys() ^ updated.keys()) or [n for n in params if params[n].shape != updated[n].shape]
    if wrong:
        raise ConfigurationError(
            f"{type(optimizer).__name__}.update must return every parameter that it was given, under its name and of "
            f"its shape; it does not for {', '.join(wrong)}."
        )
    return result


def check_steps(name: str, steps: int) -> int:
    """Refuse what is not a number of steps.

    Raises:
        ArgumentTypeError: It is not a whole number.
        ConfigurationError: It is negative.
    """
    if type(steps) is not int:
        raise ArgumentTypeError(f"{name} must be a whole number, got {steps!r}.")
    if steps < 0:
        raise ConfigurationError(f"{name} must be 0 or more, got {steps}.")
    return steps
