"""MAML for policies."""

from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import GradientBased, Unrolled
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import InnerOptimizer
from lightning_meta.modules import MAMLModule, MetaModule
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.maml import default_sgd
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite
from lightning_meta.rl import acting, deployment
from lightning_meta.rl.policy_gradient import PolicyGradient


class MAMLRLModule(MetaModule):
    r"""Learns an initial policy from which a few steps of policy gradients, each after acting, solve a task.

    .. math::
        \max_\theta \frac{1}{B} \sum_b R_b(\phi_b), \qquad
        \phi_b = \theta + \alpha \nabla_\theta R_b(\theta) \text{ (and so on for more steps)}

    with the return R of a policy in task b. Each batch of tasks is acted in once: with the policy before each inner
    step and with the adapted one. Then `outer_steps_per_batch` outer steps are made on what was stored: one is MAML
    with an actor-critic, several with `loss=PolicyGradient(clip=0.2)` are ProMP.

    Variants are settings of it: FOMAML (`first_order=True`), ANIL (`adapt_only`), Meta-SGD and learned rates of layers
    and steps (`inner_optimizer=MetaSGD(lr)`, `LSLR(lr)`), joint training (`inner_steps=0` with some `val_inner_steps`).

    Papers: Finn, Abbeel, Levine 2017, arXiv:1703.03400; Rothfuss et al. 2019, arXiv:1810.06784 (ProMP).

    Args:
        network: The policy, such as a `GaussianPolicy`: says how to act on observations `(..., *observation)`.
        inner_lr: The rate α of the default inner optimizer, plain gradient descent; 0.01 if `None`.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation; `inner_steps` if `None`.
        first_order: Take inner gradients for constants (FOMAML).
        inner_optimizer: Another inner optimizer, instead of `inner_lr`.
        first_order_steps: Be first-order for this many outer steps at the beginning.
        adapt_only: Which parameters the inner loop changes: `"network"` leaves out a `GaussianPolicy`'s deviations.
        checkpoint_inner_steps: Compute inner steps again for the meta-gradient: bounds the memory of many.
        discount: γ, how much less a reward is worth for each step that it comes later.
        gae_lambda: λ of generalized advantage estimation.
        loss: Of the adapted policy; `PolicyGradient()` if `None`.
        inner_loss: Of the inner loop; `PolicyGradient()` if `None`.

    Raises:
        ConfigurationError: An argument does not make sense; the message says which and what to do.

    Example:
        >>> from lightning_meta.rl import GaussianPolicy, NavigationDataModule
        >>> module = MAMLRLModule(GaussianPolicy(2, 2), inner_lr=0.1)
        >>> module.sampler.data = NavigationDataModule(horizon=5, meta_batch_size=3)
        >>> module.sampler.data.setup()
        >>> tasks = next(iter(module.sampler.data.train_dataloader()))
        >>> batch = acting.collect(module, tasks, acting.Actor(
        ...     module.algorithm, module.task_map, lambda: module.problem(tasks), training=True))
        >>> batch.query.inputs.shape  # 3 tasks, 20 episodes, 5 steps
        torch.Size([3, 20, 5, 2])
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
        first_order_steps: int = 0,
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
        algorithm = GradientBased(
            default_sgd(inner_lr, inner_optimizer),
            Unrolled(first_order, first_order_steps),
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


complete_arguments(MAMLRLModule, MAMLModule, MetaModule)
