"""Implicit MAML."""

from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import GradientBased, Implicit
from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import SGD, InnerOptimizer
from lightning_meta.inner.base import check_nothing_to_learn
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.maml import MAMLModule
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite


class IMAMLModule(MetaModule):
    r"""Learns initial parameters with the meta-gradient at the inner problem's solution, whatever led there.

    The inner loop descends the support loss with a proximal term,

    .. math:: \phi_b = \arg\min_\phi L^{support}_b(\phi) + \frac{\lambda}{2} \|\phi - \theta\|^2,

    and the meta-gradient follows from φ_b alone, solved for by conjugate gradient:

    .. math::
        \left(I + \tfrac{1}{\lambda + \delta} \nabla^2 L^{support}_b(\phi_b)\right) g_b
        = \nabla L^{query}_b(\phi_b), \qquad \nabla_\theta = \frac{1}{B} \sum_b g_b

    Memory does not grow with the inner steps. The inner loop has to come near the solution for the gradient to be
    right, and the matrix has to be positive definite, for which a network may need a damping δ. Parameters that
    `adapt_only` leaves out have their implicit gradient, too.

    Paper: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630.

    Args:
        network: Called as `network(inputs)`.
        inner_optimizer: Descends the inner problem; plain gradient descent if `None`.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation, with the proximal term, too; `inner_steps` if `None`.
        regularization: The strength λ of the proximal term, positive.
        cg_steps: Iterations of conjugate gradient, each of the cost of a second derivative.
        damping: The damping δ of the gradient, not of the inner loop: 0 as in the paper; its authors' program has 10.

    Raises:
        ConfigurationError: An argument does not make sense, or the inner optimizer has meta-parameters of its own: the
            implicit gradient has no part for them.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> module = IMAMLModule(nn.Linear(4, 3), inner_steps=5)
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> module.network.weight.grad.shape
        torch.Size([3, 4])
    """

    algorithm: GradientBased

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 16,
        val_inner_steps: int | None = None,
        regularization: float = 2.0,
        cg_steps: int = 5,
        adapt_only: str | list[str] | None = None,
        transductive: bool = True,
        *,
        damping: float = 0.0,
        loss: Loss | None = None,
        inner_loss: Loss | None = None,
        metrics: Metrics | None = None,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        task_parallel: TaskParallel = "auto",
        outer_steps_per_batch: int = 1,
        on_nonfinite: OnNonfinite = "raise",
        max_skipped_steps: int = 20,
        compile: bool = False,
        save_frozen: bool = True,
    ) -> None:
        if not regularization > 0:
            raise ConfigurationError(
                f"regularization is the strength of the proximal term; it must be above 0, got {regularization}."
            )
        if cg_steps < 1:
            raise ConfigurationError(f"cg_steps must be at least 1, got {cg_steps}.")
        if not damping >= 0:
            raise ConfigurationError(f"damping must be 0 or more, got {damping}.")
        algorithm = GradientBased(
            SGD() if inner_optimizer is None else inner_optimizer,
            Implicit(cg_steps, damping),
            inner_steps=inner_steps,
            val_inner_steps=val_inner_steps,
            adapt_only=adapt_only,
            statistics="query batch (transductive)" if transductive else "support set",
            proximal=regularization,
        )
        super().__init__(
            network, algorithm, loss=loss, inner_loss=inner_loss, metrics=metrics, optimizer=optimizer,
            lr_scheduler=lr_scheduler, gradient_clip_val=gradient_clip_val, task_parallel=task_parallel,
            outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite, max_skipped_steps=max_skipped_steps,
            compile=compile, save_frozen=save_frozen,
        )  # fmt: skip
        check_nothing_to_learn(type(self).__name__, algorithm.inner_optimizer)


complete_arguments(IMAMLModule, MAMLModule, MetaModule)
