"""Implicit MAML's meta-gradient."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_meta.algorithms.base import Outcome
from lightning_meta.algorithms.gradient_based import GradientBased
from lightning_meta.functional.conjugate_gradient import conjugate_gradient, inner
from lightning_meta.functional.gradients import task_surrogates
from lightning_meta.functional.inner_loop import scaled_gradients
from lightning_meta.functional.network import Params
from lightning_meta.functional.problem import Problem


@dataclass(frozen=True)
class Implicit:
    r"""The gradient of the inner problem's solution, whatever led there.

    With the inner loop's proximal strength λ and a damping δ,

    .. math::
        \left(I + \tfrac{1}{\lambda + \delta} \nabla^2 L^{support}_b(\phi_b)\right) g_b = \nabla L^{query}_b(\phi_b).

    Paper: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630.

    Attributes:
        cg_steps: Iterations of conjugate gradient, each of the cost of a second derivative.
        damping: δ: the gradient is that of a proximal term of the strength λ + δ.
    """

    cg_steps: int = 5
    damping: float = 0.0
    objective: ClassVar[str] = "query_loss"

    def compile_key(self, outer_step: int) -> Hashable | None:
        """The iterations."""
        return self.cg_steps

    def __call__(self, algorithm: GradientBased, problem: Problem) -> Outcome:
        """Adapt, and solve for the meta-gradient at the adapted parameters."""
        outcome, adapted = algorithm.learned(problem, order=0)
        params, strength = adapted.params, algorithm.proximal + self.damping
        right = _gradient(problem, outcome.losses, params)
        support, _ = problem.support_losses(params, adapted.buffers, adapted.support, adapted.steps, twice=True)
        support_gradient = _gradient(problem, support, params, create_graph=True)

        def product(v: Params) -> Params:
            curvature = _gradient(problem, inner(support_gradient, v), params)
            return {name: v[name] + curvature[name] / strength for name in v}

        solution = conjugate_gradient(product, right, self.cg_steps)
        losses = task_surrogates(outcome.losses, algorithm.initial(problem, trainable=True)[0], solution)
        if len(params) < sum(p.requires_grad for p in problem.learner.network.parameters()):
            # What is shared by all tasks acts on the query loss, and on where the inner problem has its solution.
            shared = outcome.losses - inner(support_gradient, solution) / strength
            losses = losses + shared - shared.detach()
        return outcome._replace(losses=losses)


def _gradient(problem: Problem, losses: Tensor, params: Params, *, create_graph: bool = False) -> Params:
    """The gradient of each task's loss, `(B,)`, in its own parameters."""
    if not losses.requires_grad:  # a Hessian of zero, such as a linear loss has
        return {name: torch.zeros_like(param) for name, param in params.items()}
    gradients = scaled_gradients(
        losses.sum(), list(params.values()), problem.scale, create_graph=create_graph, retain_graph=True
    )
    return dict(zip(params, gradients, strict=True))
