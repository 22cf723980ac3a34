"""Ridge regression differentiable discriminator."""

from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import MetricBased, RidgeHead
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite
from lightning_meta.modules.protonet import ProtoNetModule


class R2D2Module(MetaModule):
    r"""Learns an embedding in which ridge regression on the support set tells classes apart.

    .. math:: W = X^\top (X X^\top + \lambda I)^{-1} Y, \qquad \mathrm{logits}(x) = \alpha f(x) W + \beta

    with the support set's features X and one-hot classes Y; λ, α and β are learned. The solution is differentiated in
    closed form. Paper: Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv:1805.08136.

    Args:
        network: The embedding f: its submodule `body` if it has one, otherwise the whole network. The paper's is
            `R2D2Net`.
        regularization: The strength λ at first, positive.
        scale: The scale α at first.

    Raises:
        ConfigurationError: An argument does not make sense; in use, a class without a support example.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> module = R2D2Module(nn.Linear(4, 8))
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> bool(module.algorithm.head.log_regularization.grad)
        True
    """

    algorithm: MetricBased

    def __init__(
        self,
        network: nn.Module,
        regularization: float = 1.0,
        scale: float = 1.0,
        transductive: bool = True,
        *,
        loss: Loss | None = None,
        metrics: Metrics | None = None,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        inner_optimizer_lr: float | None = None,
        gradient_clip_val: float | None = None,
        task_parallel: TaskParallel = "auto",
        outer_steps_per_batch: int = 1,
        on_nonfinite: OnNonfinite = "raise",
        max_skipped_steps: int = 20,
        compile: bool = False,
        save_frozen: bool = True,
    ) -> None:
        head = RidgeHead(regularization, scale)
        algorithm = MetricBased(head, "query batch (transductive)" if transductive else "support set")
        super().__init__(
            network, algorithm, loss=loss, metrics=metrics, optimizer=optimizer, lr_scheduler=lr_scheduler,
            inner_optimizer_lr=inner_optimizer_lr, gradient_clip_val=gradient_clip_val, task_parallel=task_parallel,
            outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite, max_skipped_steps=max_skipped_steps,
            compile=compile, save_frozen=save_frozen,
        )  # fmt: skip


complete_arguments(R2D2Module, ProtoNetModule, MetaModule)
