"""Implicit MAML."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.functional.conjugate_gradient import conjugate_gradient, inner
from lightning_meta.functional.learner import Learner, Params
from lightning_meta.functional.meta_gradient import task_surrogates
from lightning_meta.functional.scaling import scaled_gradients
from lightning_meta.inner import InnerOptimizer
from lightning_meta.modules.adapting import Adapted
from lightning_meta.modules.checks import check_meta_parameters
from lightning_meta.modules.gradient_based import GradientBasedModule
from lightning_meta.modules.outcome import Outcome
from lightning_meta.task import Task


class IMAMLModule(GradientBasedModule):
    r"""Learns initial parameters with the meta-gradient at the inner problem's solution, whatever led there.

    The inner loop descends the support loss with a proximal term,

    .. math:: \phi_b = \arg\min_\phi L^{support}_b(\phi) + \frac{\lambda}{2} \|\phi - \theta\|^2,

    and the meta-gradient follows from φ_b alone, solved for by conjugate gradient:

    .. math::
        \left(I + \tfrac{1}{\lambda} \nabla^2 L^{support}_b(\phi_b)\right) g_b = \nabla L^{query}_b(\phi_b), \qquad
        \nabla_\theta = \frac{1}{B} \sum_b g_b

    Memory does not grow with the inner steps. The inner loop has to come near the solution for the gradient to be
    right. Parameters that `adapt_only` leaves out have their implicit gradient, too.

    Paper: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630.

    Args:
        network: Called as `network(inputs)`.
        inner_optimizer: Descends the inner problem; plain gradient descent if `None`.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation, with the proximal term, too; `inner_steps` if `None`.
        regularization: The strength λ of the proximal term, positive.
        cg_steps: Iterations of conjugate gradient, each of the cost of a second derivative.
        kwargs: See `GradientBasedModule` and `MetaModule`: `transductive`, `adapt_only`, `loss`, `optimizer`,
            `lr_scheduler`, `gradient_clip_val`, `task_parallel`.

    Raises:
        ValueError: An argument does not make sense, or the inner optimizer has meta-parameters of its own: the implicit
            gradient has no part for them.

    Example:
        >>> from lightning_meta import Examples, Task
        >>> module = IMAMLModule(nn.Linear(4, 3), inner_steps=5)
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> module.network.weight.grad.shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 16,
        val_inner_steps: int | None = None,
        regularization: float = 2.0,
        cg_steps: int = 5,
        **kwargs: Any,
    ) -> None:
        if not regularization > 0:
            raise ValueError(
                f"regularization is the strength of the proximal term; it must be above 0, got {regularization}."
            )
        if cg_steps < 1:
            raise ValueError(f"cg_steps must be at least 1, got {cg_steps}.")
        super().__init__(network, inner_optimizer, inner_steps, val_inner_steps, **kwargs)
        check_meta_parameters(type(self).__name__, self.inner_optimizer)
        self.regularization = regularization
        self.cg_steps = cg_steps

    def inner_objective(self, losses: Tensor, params: Params, initial: Params) -> Tensor:
        """The support losses with the proximal term."""
        ways = {name: param - initial[name].detach() for name, param in params.items()}
        return losses + self.regularization / 2 * inner(ways, ways)

    def learn(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt, and solve for the meta-gradient at the adapted parameters."""
        adapted = self.adapt(learner, tasks, self.inner_steps, order=0)
        outcome = self.judged(learner, tasks, adapted)
        right = self._gradient(outcome.losses, adapted.params)
        support_gradient = self._support_gradient(learner, tasks, adapted)

        def product(v: Params) -> Params:
            curvature = self._gradient(inner(support_gradient, v), adapted.params)
            return {name: v[name] + curvature[name] / self.regularization for name in v}

        solution = conjugate_gradient(product, right, self.cg_steps)
        initial = self.initial_params(learner, tasks, trainable=True)
        losses = task_surrogates(outcome.losses, initial, solution)
        if len(adapted.params) < sum(p.requires_grad for p in self.parameters()):
            # What is shared by all tasks acts on the query loss, and on where the inner problem has its solution.
            shared = outcome.losses - inner(support_gradient, solution) / self.regularization
            losses = losses + shared - shared.detach()
        return outcome._replace(losses=losses)

    def _support_gradient(self, learner: Learner, tasks: Task, adapted: Adapted) -> Params:
        """The gradient of the support losses at the adapted parameters, differentiable once more."""
        support = self.support_data(tasks, adapted.params, adapted.steps)
        with learner.twice_differentiable():
            predictions = learner.predict(adapted.params, dict(adapted.buffers), support.inputs)
            losses = self.task_losses(learner, predictions, support.targets)
            return self._gradient(losses, adapted.params, create_graph=True)

    def _gradient(self, losses: Tensor, params: Params, *, create_graph: bool = False) -> Params:
        """The gradient of each task's loss, `(B,)`, in its own parameters."""
        if not losses.requires_grad:  # a Hessian of zero, such as a linear loss has
            return {name: torch.zeros_like(param) for name, param in params.items()}
        gradients = scaled_gradients(
            losses.sum(), list(params.values()), self.inner_loss_scale, create_graph=create_graph, retain_graph=True
        )
        return dict(zip(params, gradients, strict=True))
