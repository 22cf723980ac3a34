"""Prototypical networks."""

from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import MetricBased, PrototypeHead
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite


class ProtoNetModule(MetaModule):
    r"""Learns an embedding in which examples lie near the prototype of their class.

    .. math::
        p_c = \frac{1}{K} \sum_{y_i = c} f(x_i), \qquad
        \log P(c \mid x) = -\|f(x) - p_c\|^2 - \log \sum_{c'} e^{-\|f(x) - p_{c'}\|^2}

    There is no inner loop and no head, so tasks may have any number of classes, and more in training than in
    evaluation, as in the paper. Logits are those of the linear layer with the same softmax. Paper: Snell, Swersky,
    Zemel 2017, arXiv:1703.05175.

    Args:
        network: The embedding f: its submodule `body` if it has one (as the networks of this package do), otherwise the
            whole network. It gives `(examples, features)`.
        transductive: Whether batch normalization in evaluation uses the statistics of a task's support and query
            examples together, as in training; otherwise those of the support set.

    Raises:
        ConfigurationError: An argument does not make sense; in use, a class without a support example.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> module = ProtoNetModule(nn.Linear(4, 8))
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> module.adapt_to(inputs[0], targets[0])(inputs[0, :1]).shape
        torch.Size([1, 3])
    """

    algorithm: MetricBased

    def __init__(
        self,
        network: nn.Module,
        transductive: bool = True,
        *,
        loss: Loss | None = None,
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
        algorithm = MetricBased(PrototypeHead(), "query batch (transductive)" if transductive else "support set")
        super().__init__(
            network, algorithm, loss=loss, metrics=metrics, optimizer=optimizer, lr_scheduler=lr_scheduler,
            gradient_clip_val=gradient_clip_val, task_parallel=task_parallel,
            outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite, max_skipped_steps=max_skipped_steps,
            compile=compile, save_frozen=save_frozen,
        )  # fmt: skip


complete_arguments(ProtoNetModule, MetaModule)
