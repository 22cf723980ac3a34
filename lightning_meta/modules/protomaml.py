"""Proto-MAML."""

from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import GradientBased, PrototypeStart, Unrolled
from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import InnerOptimizer
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.maml import MAMLModule, default_sgd
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite


class ProtoMAMLModule(MetaModule):
    r"""MAML whose head starts, for every task, as the classifier by the distances to its support set's prototypes.

    .. math:: w_c = 2 p_c, \qquad b_c = -\|p_c\|^2

    with the prototypes p_c of the body's features. They are differentiated through; the network's own head has no
    effect, so tasks may have other numbers of classes than it has outputs. Paper: Triantafillou et al. 2020,
    arXiv:1903.03096.

    Args:
        network: Gives `head(body(inputs))`, of a submodule `body` for `(examples, features)` and a linear layer `head`.

    Raises:
        ConfigurationError: The network has no such parts, or `adapt_only` leaves out the head; in use, a class that the
            query set asks for has no support example.

    Example:
        >>> import torch
        >>> from lightning_meta import MLP, Examples, Task
        >>> module = ProtoMAMLModule(MLP(4, 3), inner_lr=0.1)
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> bool(module.network.head.weight.grad.any()), bool(module.network.body[1].weight.grad.any())
        (False, True)
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
        adapt_only: str | list[str] | None = None,
        transductive: bool = True,
        checkpoint_inner_steps: bool = False,
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
        body, head = getattr(network, "body", None), getattr(network, "head", None)
        if not isinstance(body, nn.Module) or not isinstance(head, nn.Linear) or head.bias is None:
            raise ConfigurationError(
                f"ProtoMAMLModule needs a network with a submodule `body` and a linear layer `head` with a bias after "
                f"it, as Conv4 has; {type(network).__name__} has not."
            )
        algorithm = GradientBased(
            default_sgd(inner_lr, inner_optimizer),
            Unrolled(first_order),
            start=PrototypeStart(),
            inner_steps=inner_steps,
            val_inner_steps=val_inner_steps,
            adapt_only=adapt_only,
            statistics="query batch (transductive)" if transductive else "support set",
            recompute=checkpoint_inner_steps,
        )
        if not {"head.weight", "head.bias"} <= set(algorithm.select(network)):
            raise ConfigurationError(f"The head has to be adapted, but adapt_only={adapt_only!r} leaves it out.")
        super().__init__(
            network, algorithm, loss=loss, inner_loss=inner_loss, metrics=metrics, optimizer=optimizer,
            lr_scheduler=lr_scheduler, inner_optimizer_lr=inner_optimizer_lr, gradient_clip_val=gradient_clip_val,
            task_parallel=task_parallel, outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite,
            max_skipped_steps=max_skipped_steps, compile=compile, save_frozen=save_frozen,
        )  # fmt: skip


complete_arguments(ProtoMAMLModule, MAMLModule, MetaModule)
