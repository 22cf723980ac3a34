"""The inner loop: adapt parameters to a support set, a pure function of a dict of parameters."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_meta.functional.learner import Params
from lightning_meta.functional.scaling import scaled_gradients

Order = Literal[0, 1, 2]
"""What the adapted parameters are differentiable in: nothing (0), the initial parameters with the gradients taken for
constants (1, FOMAML), or all of it (2)."""


class Update(Protocol):
    """One inner step of an inner optimizer over a batch of tasks."""

    def __call__(self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int) -> tuple[Params, Any]:
        """Return the new parameters and the new state."""
        ...


def adapt(
    objective: Callable[[Params, int], Tensor],
    params: Params,
    state: Any,
    update: Update,
    steps: int,
    *,
    order: Order = 2,
    scale: float = 1.0,
    recompute: bool = False,
    on_step: Callable[[int, Params, Any], None] | None = None,
) -> tuple[Params, Any, list[Tensor]]:
    r"""Adapt every task's parameters by `steps` steps of an inner optimizer.

    For gradient descent at rate α this is, for every task at once,

    .. math:: \phi_0 = \theta, \qquad \phi_{i+1} = \phi_i - \alpha \nabla_{\phi_i} L(\phi_i).

    Paper: Finn, Abbeel, Levine 2017, arXiv:1703.03400, algorithm 1, lines 4 to 7.

    Args:
        objective: Maps parameters and the number of the step to each task's support loss, `(B,)`.
        params: Initial parameters, each `(B, *shape)`.
        state: The initial state of the inner optimizer.
        update: The inner optimizer's step.
        steps: Number of inner steps; 0 returns `params`.
        order: Order of the meta-gradient that the result carries.
        scale: What the objective is multiplied by while gradients are computed: see `scaled_gradients`.
        recompute: Whether only each step's parameters are kept, and the meta-gradient computes the step again
            (gradient checkpointing): with many steps much less memory, for about a third more time.
        on_step: Called with the number of steps done, the parameters and the state, first with 0 and the initial ones.

    Returns:
        The adapted parameters, the inner optimizer's state, and the support losses `(B,)` before each step, detached.
    """
    losses = []
    names = list(params)
    if order > 0:
        # Where initial parameters depend on one another (a head on the body), inner gradients do not follow that.
        params = {name: param.view_as(param) for name, param in params.items()}

    def one_step(params: Params, state: Any, step: int) -> tuple[Params, Any, Tensor]:
        loss = objective(params, step)
        # Each task's loss depends on its own slice only: the gradient of the sum holds every task's gradient.
        gradients = scaled_gradients(loss.sum(), [params[name] for name in names], scale, create_graph=order == 2)
        grads = dict(zip(names, gradients, strict=True))
        with torch.set_grad_enabled(order > 0):
            return *update(grads, state, params, loss=loss.detach(), step=step), loss.detach()

    for step in range(steps):
        if on_step is not None:
            on_step(step, params, state)
        if recompute and order == 2:
            params, state, loss = checkpoint(one_step, params, state, step, use_reentrant=False)
        else:
            params, state, loss = one_step(params, state, step)
        losses.append(loss)
        if order == 0:
            params = {name: param.requires_grad_() for name, param in params.items()}
    if on_step is not None:
        on_step(steps, params, state)
    return params, state, losses
