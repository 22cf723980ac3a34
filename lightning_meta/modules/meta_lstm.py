"""Meta-LSTM."""

from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import GradientBased, Unrolled
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import InnerOptimizer, LSTMOptimizer
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.maml import MAMLModule
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite


class MetaLSTMModule(MetaModule):
    r"""Learns the rule that updates a learner's parameters, and the parameters from which it starts.

    .. math:: \phi_{i+1} = f_i \circ \phi_i - i_i \circ \nabla L^{support}(\phi_i)

    with the gates f and i of an LSTM whose cell state the parameters are: see `LSTMOptimizer`. The query loss after the
    last inner step is propagated back through the steps to the LSTM and to the initial parameters, its initial cell
    state. The learner's own gradients are taken for constants.

    Paper: Ravi, Larochelle 2017, "Optimization as a model for few-shot learning" (ICLR), algorithm 1. Batch
    normalization uses the batch at hand in meta-training, as there. In evaluation the paper predicts query examples
    with statistics collected in the episode; here that is `transductive=False`, with the support set's statistics.

    Args:
        network: Called as `network(inputs)`. The paper's has 32 filters: `Conv4(n_way, hidden=32)`.
        inner_optimizer: `LSTMOptimizer()` if `None`.
        inner_steps: Inner steps in meta-training; the paper has 12 for 1-shot and 5 for 5-shot tasks.
        second_order: Differentiate through the learner's gradients, too.
        gradient_clip_val: Largest norm of the meta-gradient, as in the released code.

    Raises:
        ConfigurationError: An argument does not make sense; the message says which and what to do.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> module = MetaLSTMModule(nn.Linear(4, 3), inner_steps=2)
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> bool(module.inner_optimizer.bias_input.grad)
        True
    """

    algorithm: GradientBased

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 12,
        val_inner_steps: int | None = None,
        second_order: bool = False,
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
        gradient_clip_val: float | None = 0.25,
        task_parallel: TaskParallel = "auto",
        outer_steps_per_batch: int = 1,
        on_nonfinite: OnNonfinite = "raise",
        max_skipped_steps: int = 20,
        compile: bool = False,
        save_frozen: bool = True,
    ) -> None:
        algorithm = GradientBased(
            LSTMOptimizer() if inner_optimizer is None else inner_optimizer,
            Unrolled(first_order=not second_order),
            inner_steps=inner_steps,
            val_inner_steps=val_inner_steps,
            adapt_only=adapt_only,
            statistics="query batch (transductive)" if transductive else "support set",
            recompute=checkpoint_inner_steps,
        )
        super().__init__(
            network, algorithm, loss=loss, inner_loss=inner_loss, metrics=metrics, optimizer=optimizer,
            lr_scheduler=lr_scheduler, inner_optimizer_lr=inner_optimizer_lr, gradient_clip_val=gradient_clip_val,
            task_parallel=task_parallel, outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite,
            max_skipped_steps=max_skipped_steps, compile=compile, save_frozen=save_frozen,
        )  # fmt: skip


complete_arguments(MetaLSTMModule, MAMLModule, MetaModule)
