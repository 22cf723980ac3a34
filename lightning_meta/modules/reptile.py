"""Reptile."""

import torch
from torch import nn

from lightning_meta.algorithms import GradientBased, Interpolation
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import Adam, InnerOptimizer
from lightning_meta.inner.base import check_nothing_to_learn
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.maml import MAMLModule
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite


class ReptileModule(MetaModule):
    r"""Moves the initial parameters towards those that each task ends in, with no second derivatives and no query set.

    .. math:: \theta \leftarrow \theta + \epsilon \frac{1}{B} \sum_b (\phi_b - \theta),

    where φ_b is θ after `inner_steps` steps of the inner optimizer on task b's support set. As a meta-gradient that is
    :math:`\theta - \frac{1}{B} \sum_b \phi_b`, for any outer optimizer; plain gradient descent at the rate ε is the
    interpolation above. A schedule anneals it: `LinearLR` from 1 to 0 as published.

    Training tasks may have more support examples than those evaluated: set the data module's `k_shot` and
    `val_k_shot`. Training does not use query sets. What `adapt_only` leaves out stays as it is initialized. `adapt_to`
    freezes batch normalization to the support set, whichever way evaluation has it.

    Paper: Nichol, Achiam, Schulman 2018, arXiv:1803.02999 (batched version, algorithm 2).

    Args:
        network: Called as `network(inputs)`.
        inner_optimizer: `Adam(lr=0.001, betas=(0, 0.999))` if `None`, as published.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation; `inner_steps` if `None`.
        inner_batch_size: Support examples in an inner step of meta-training, drawn without replacement until all have
            had their turn, anew in each of the Trainer's outer steps; the whole support set if `None`.
        val_inner_batch_size: The same in evaluation.
        carry_inner_state: Start every task from one state of the inner optimizer, and keep the mean of the states that
            tasks end in, over all tasks and devices. (The published code carries one state on from task to task, which
            run one after another there.) Otherwise each task starts with a fresh state.
        transductive: Whether batch normalization in evaluation uses the statistics of the query batch. Otherwise each
            query example joins the support set by itself, and the statistics are those of both (as published).

    Raises:
        ConfigurationError: An argument does not make sense, or the inner optimizer has meta-parameters of its own:
            Reptile's meta-gradient has no part for them.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> module = ReptileModule(nn.Linear(4, 3), inner_steps=3)
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
        inner_steps: int = 5,
        val_inner_steps: int | None = None,
        inner_batch_size: int | None = None,
        val_inner_batch_size: int | None = None,
        carry_inner_state: bool = False,
        transductive: bool = True,
        adapt_only: str | list[str] | None = None,
        *,
        loss: Loss | None = None,
        metrics: Metrics | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=1.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        task_parallel: TaskParallel = "auto",
        outer_steps_per_batch: int = 1,
        on_nonfinite: OnNonfinite = "raise",
        max_skipped_steps: int = 20,
        compile: bool = False,
        save_frozen: bool = True,
    ) -> None:
        algorithm = GradientBased(
            Adam(lr=0.001, betas=(0.0, 0.999)) if inner_optimizer is None else inner_optimizer,
            Interpolation(),
            inner_steps=inner_steps,
            val_inner_steps=val_inner_steps,
            adapt_only=adapt_only,
            statistics="query batch (transductive)" if transductive else "support set with one query example",
            inner_batch_size=inner_batch_size,
            val_inner_batch_size=val_inner_batch_size,
            carries=carry_inner_state,
        )
        super().__init__(
            network, algorithm, loss=loss, metrics=metrics, optimizer=optimizer, lr_scheduler=lr_scheduler,
            gradient_clip_val=gradient_clip_val, task_parallel=task_parallel,
            outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite, max_skipped_steps=max_skipped_steps,
            compile=compile, save_frozen=save_frozen,
        )  # fmt: skip
        check_nothing_to_learn(type(self).__name__, algorithm.inner_optimizer)


complete_arguments(ReptileModule, MAMLModule, MetaModule)
