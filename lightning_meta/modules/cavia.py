"""Fast context adaptation."""

from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import GradientBased, Unrolled, ZeroStart
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import InnerOptimizer
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.maml import MAMLModule, default_sgd
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite


class CAVIAModule(MetaModule):
    r"""Adapts a few context parameters that the network sees besides its inputs; all others are shared by all tasks.

    .. math:: \phi_b = 0 - \alpha \nabla_\phi L^{support}_b(\phi, \theta) |_{\phi=0}, \qquad
        \min_\theta \frac{1}{B} \sum_b L^{query}_b(\phi_b, \theta)

    The context starts at zero for every task, and is not meta-learned. Paper: Zintgraf, Shiarlis, Kurin, Hofmann,
    Whiteson 2019, arXiv:1810.03642.

    Args:
        network: Has the context among its parameters, such as `ContextMLP`.
        context: Which of the network's parameters are the context: a name, a pattern of names, or a list.

    Raises:
        ConfigurationError: An argument does not make sense; the message says which and what to do.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> from lightning_meta.models import ContextMLP
        >>> module = CAVIAModule(ContextMLP(), inner_lr=1.0, loss=nn.functional.mse_loss)
        >>> x = torch.randn(2, 6, 1)
        >>> module.meta_loss(Task(Examples(x, x.sin()), Examples(x, x.sin()))).backward()
        >>> module.network.context.grad.tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    algorithm: GradientBased

    def __init__(
        self,
        network: nn.Module,
        inner_lr: float | None = None,
        inner_steps: int = 1,
        val_inner_steps: int | None = None,
        first_order: bool = False,
        inner_optimizer: InnerOptimizer | None = None,
        context: str | list[str] = "context",
        transductive: bool = True,
        *,
        loss: Loss | None = None,
        inner_loss: Loss | None = None,
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
        algorithm = GradientBased(
            default_sgd(inner_lr, inner_optimizer),
            Unrolled(first_order),
            start=ZeroStart(),
            inner_steps=inner_steps,
            val_inner_steps=val_inner_steps,
            adapt_only=context,
            statistics="query batch (transductive)" if transductive else "support set",
        )
        super().__init__(
            network, algorithm, loss=loss, inner_loss=inner_loss, metrics=metrics, optimizer=optimizer,
            lr_scheduler=lr_scheduler, inner_optimizer_lr=inner_optimizer_lr, gradient_clip_val=gradient_clip_val,
            task_parallel=task_parallel, outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite,
            max_skipped_steps=max_skipped_steps, compile=compile, save_frozen=save_frozen,
        )  # fmt: skip


complete_arguments(CAVIAModule, MAMLModule, MetaModule)
