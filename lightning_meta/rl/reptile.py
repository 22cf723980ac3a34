"""Reptile for policies."""

import torch
from torch import nn

from lightning_meta.algorithms import GradientBased, Interpolation
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import SGD, InnerOptimizer
from lightning_meta.inner.base import check_nothing_to_learn
from lightning_meta.modules import MetaModule
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite
from lightning_meta.rl import acting, deployment
from lightning_meta.rl.maml import MAMLRLModule
from lightning_meta.rl.policy_gradient import PolicyGradient


class ReptileRLModule(MetaModule):
    r"""Moves the initial policy towards the policies that tasks adapt it to.

    .. math:: \theta \leftarrow \theta + \epsilon \frac{1}{B} \sum_b (\phi_b - \theta)

    with ε the rate of the outer optimizer, plain gradient descent by default. Each inner step has trajectories of its
    own, acted out by the policy before it. There is no derivative of the inner loop, and nothing is learned of what
    the adapted policy does, which acts for the logs alone. One outer step is made on each batch.

    Paper: Nichol, Achiam, Schulman 2018, arXiv:1803.02999.

    Args:
        network: The policy, such as a `GaussianPolicy`: says how to act on observations `(..., *observation)`.
        inner_optimizer: Without anything to learn; gradient descent at 0.1 if `None`.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation; `inner_steps` if `None`.
        loss: Of the inner loop; `PolicyGradient()` if `None`.

    Raises:
        ConfigurationError: An argument does not make sense, or the inner optimizer has something to learn.

    Example:
        >>> from lightning_meta.rl import GaussianPolicy
        >>> ReptileRLModule(GaussianPolicy(2, 2), inner_steps=4).inner_optimizer
        SGD(lr=0.1)
    """

    algorithm: GradientBased

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 3,
        val_inner_steps: int | None = None,
        adapt_only: str | list[str] | None = None,
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        *,
        loss: PolicyGradient | Loss | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=1.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        task_parallel: TaskParallel = "auto",
        on_nonfinite: OnNonfinite = "raise",
        max_skipped_steps: int = 20,
        compile: bool = False,
    ) -> None:
        algorithm = GradientBased(
            SGD(0.1) if inner_optimizer is None else inner_optimizer,
            Interpolation(),
            inner_steps=inner_steps,
            val_inner_steps=val_inner_steps,
            adapt_only=adapt_only,
        )
        super().__init__(
            network, algorithm, loss=loss or PolicyGradient(), optimizer=optimizer, lr_scheduler=lr_scheduler,
            gradient_clip_val=gradient_clip_val, task_parallel=task_parallel, on_nonfinite=on_nonfinite,
            max_skipped_steps=max_skipped_steps, compile=compile,
        )  # fmt: skip
        check_nothing_to_learn(type(self).__name__, algorithm.inner_optimizer)
        self.sampler = acting.Sampler(discount, gae_lambda)

    collect, measured, support_data = acting.collect, acting.measured, acting.support_data
    task_metrics, adaptation_curve = acting.task_metrics, acting.adaptation_curve
    monitor, mode = property(acting.monitor), property(acting.mode)
    adapt_to = deployment.adapt_to  # type: ignore[assignment]


complete_arguments(ReptileRLModule, MAMLRLModule, MetaModule)
