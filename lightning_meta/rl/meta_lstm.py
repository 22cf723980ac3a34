"""Meta-LSTM for policies."""

from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import GradientBased, Unrolled
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import InnerOptimizer, LSTMOptimizer
from lightning_meta.modules import MetaLSTMModule, MetaModule
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite
from lightning_meta.rl import acting, deployment
from lightning_meta.rl.maml import MAMLRLModule
from lightning_meta.rl.policy_gradient import PolicyGradient


class MetaLSTMRLModule(MetaModule):
    r"""Learns the rule that updates a policy from what it did, and the policy from which it starts.

    .. math:: \phi_{i+1} = f_i \circ \phi_i - i_i \circ \nabla L(\phi_i)

    with the gates f and i of an LSTM that sees the gradient and the loss L, minus the return of the episodes before the
    step: see `LSTMOptimizer`. The first rate of its default, 0.011, is meant for classification and is far too small
    for policies, so that the one here starts at about 0.1: `LSTMOptimizer(input_bias=(-2.4, -2.0))`, with forget gates
    that keep 0.9995 of a parameter.

    Paper: Ravi, Larochelle 2017, "Optimization as a model for few-shot learning" (ICLR).

    Args:
        network: The policy, such as a `GaussianPolicy`: says how to act on observations `(..., *observation)`.
        inner_optimizer: The `LSTMOptimizer` described above if `None`.
        inner_steps: Inner steps in meta-training.
        second_order: Differentiate through the policy's gradients, too.
        gradient_clip_val: Largest norm of the meta-gradient.

    Raises:
        ConfigurationError: An argument does not make sense; the message says which and what to do.

    Example:
        >>> from lightning_meta.rl import GaussianPolicy
        >>> MetaLSTMRLModule(GaussianPolicy(2, 2)).inner_optimizer.bias_input.sigmoid().item() > 0.08
        True
    """

    algorithm: GradientBased

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 1,
        val_inner_steps: int | None = None,
        second_order: bool = False,
        adapt_only: str | list[str] | None = None,
        checkpoint_inner_steps: bool = False,
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        *,
        loss: PolicyGradient | Loss | None = None,
        inner_loss: PolicyGradient | Loss | None = None,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        inner_optimizer_lr: float | None = None,
        gradient_clip_val: float | None = None,
        task_parallel: TaskParallel = "auto",
        outer_steps_per_batch: int = 1,
        on_nonfinite: OnNonfinite = "raise",
        max_skipped_steps: int = 20,
        compile: bool = False,
    ) -> None:
        if inner_optimizer is None:
            inner_optimizer = LSTMOptimizer(forget_bias=(7.5, 7.7), input_bias=(-2.4, -2.0))
        algorithm = GradientBased(
            inner_optimizer,
            Unrolled(first_order=not second_order),
            inner_steps=inner_steps,
            val_inner_steps=val_inner_steps,
            adapt_only=adapt_only,
            recompute=checkpoint_inner_steps,
        )
        PolicyGradient.check_outer_steps(outer_steps_per_batch, loss, inner_loss)
        super().__init__(
            network, algorithm, loss=loss or PolicyGradient(), inner_loss=inner_loss or PolicyGradient(),
            optimizer=optimizer, lr_scheduler=lr_scheduler, inner_optimizer_lr=inner_optimizer_lr,
            gradient_clip_val=gradient_clip_val, task_parallel=task_parallel,
            outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite, max_skipped_steps=max_skipped_steps,
            compile=compile,
        )  # fmt: skip
        self.sampler = acting.Sampler(discount, gae_lambda)

    collect, measured, support_data = acting.collect, acting.measured, acting.support_data
    task_metrics, adaptation_curve = acting.task_metrics, acting.adaptation_curve
    monitor, mode = property(acting.monitor), property(acting.mode)
    adapt_to = deployment.adapt_to  # type: ignore[assignment]


complete_arguments(MetaLSTMRLModule, MAMLRLModule, MetaLSTMModule, MetaModule)
