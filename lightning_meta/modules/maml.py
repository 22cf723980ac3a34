"""Model-agnostic meta-learning."""

import torch
from torch import nn
from torch.optim import Adam

from lightning_meta.algorithms import GradientBased, Unrolled
from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.losses import Loss
from lightning_meta.functional.network import dict_key
from lightning_meta.functional.normalization import batch_normalized_layers
from lightning_meta.functional.task_map import TaskParallel
from lightning_meta.inner import SGD, InnerOptimizer
from lightning_meta.modules.documentation import complete_arguments
from lightning_meta.modules.evaluation import Metrics
from lightning_meta.modules.meta_module import MetaModule
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite


class MAMLModule(MetaModule):
    r"""Learns initial parameters from which a few gradient steps solve a task.

    .. math::
        \min_\theta \frac{1}{B} \sum_b L^{query}_b(\phi_b), \qquad
        \phi_b = \theta - \alpha \nabla_\theta L^{support}_b(\theta) \text{ (and so on for more steps)}

    Variants are settings of it:

    - FOMAML: `first_order=True`.
    - ANIL: `adapt_only="head"`. BOIL: `adapt_only="body"`.
    - Meta-SGD: `inner_optimizer=MetaSGD(lr)`. Meta-Curvature: `inner_optimizer=MetaCurvature(lr)`.
    - MAML++: `multi_step_loss_steps`, `first_order_steps`, `per_step_norm` and `inner_optimizer=LSLR(lr)`, with a
      cosine schedule outside.
    - A fine-tuning baseline: `inner_steps=0`, so that nothing is meta-learned, and some `val_inner_steps`.

    Papers: Finn, Abbeel, Levine 2017, arXiv:1703.03400 (MAML, FOMAML); Raghu et al. 2020, arXiv:1909.09157 (ANIL);
    Oh et al. 2021, arXiv:2008.08882 (BOIL); Li et al. 2017, arXiv:1707.09835 (Meta-SGD); Antoniou, Edwards,
    Storkey 2019, arXiv:1810.09502 (MAML++).

    Outer steps are counted by the Trainer; without one, it is always the first.

    Args:
        network: Called as `network(inputs)` with `(examples, ...)`.
        inner_lr: The rate α of the default inner optimizer, plain gradient descent; 0.01 if `None`.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation; `inner_steps` if `None`.
        first_order: Take inner gradients for constants (FOMAML): no second derivatives, less time and memory.
        inner_optimizer: Another inner optimizer, instead of `inner_lr`.
        multi_step_loss_steps: For this many outer steps, descend a weighted mean of the query losses after every inner
            step, more and more of it the last one's.
        first_order_steps: Be first-order for this many outer steps at the beginning.
        per_step_norm: Meta-learn the scales and shifts of batch normalization for each inner step and for the query
            set, and do not adapt them. Evaluation has as many inner steps as meta-training then.
        adapt_only: Which parameters the inner loop changes: a name of a submodule, a pattern of names, or a list.
        transductive: Whether batch normalization in evaluation uses the statistics of the query batch (as in the MAML
            paper), or those of the support set under the adapted parameters.
        checkpoint_inner_steps: Keep only the parameters after each inner step, and compute the step again for the
            meta-gradient: bounds the memory of many inner steps, for more time.

    Raises:
        ConfigurationError: An argument does not make sense; the message says which and what to do.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> module = MAMLModule(nn.Linear(4, 3), inner_lr=0.1)
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> loss = module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets)))
        >>> loss.backward()
        >>> module.network.weight.grad.shape
        torch.Size([3, 4])
        >>> adapted = module.adapt_to(inputs[0], targets[0])
        >>> adapted(inputs[0, :1]).shape
        torch.Size([1, 3])
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
        multi_step_loss_steps: int = 0,
        first_order_steps: int = 0,
        per_step_norm: bool = False,
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
        schedule = {"multi_step_loss_steps": multi_step_loss_steps, "first_order_steps": first_order_steps}
        for name, steps in schedule.items():
            if type(steps) is not int or steps < 0:
                raise ConfigurationError(f"{name} is a number of outer steps, 0 for none; got {steps}.")
        if multi_step_loss_steps and not inner_steps:
            raise ConfigurationError(
                "multi_step_loss_steps needs inner steps after which to measure; inner_steps is 0."
            )
        algorithm = GradientBased(
            default_sgd(inner_lr, inner_optimizer),
            Unrolled(first_order, first_order_steps, multi_step_loss_steps),
            inner_steps=inner_steps,
            val_inner_steps=val_inner_steps,
            adapt_only=adapt_only,
            statistics="query batch (transductive)" if transductive else "support set",
            recompute=checkpoint_inner_steps,
        )
        if per_step_norm:
            for key, table in per_step_norms(network, algorithm).items():  # `update` would sort them
                algorithm.step_params[key] = table
        super().__init__(
            network, algorithm, loss=loss, inner_loss=inner_loss, metrics=metrics, optimizer=optimizer,
            lr_scheduler=lr_scheduler, inner_optimizer_lr=inner_optimizer_lr, gradient_clip_val=gradient_clip_val,
            task_parallel=task_parallel, outer_steps_per_batch=outer_steps_per_batch, on_nonfinite=on_nonfinite,
            max_skipped_steps=max_skipped_steps, compile=compile, save_frozen=save_frozen,
        )  # fmt: skip


complete_arguments(MAMLModule, MetaModule)


def default_sgd(inner_lr: float | None, inner_optimizer: InnerOptimizer | None) -> InnerOptimizer:
    """The inner optimizer that is given, or plain gradient descent at the rate that is given.

    Raises:
        ConfigurationError: Both are.
    """
    if inner_lr is None:
        return SGD() if inner_optimizer is None else inner_optimizer
    if inner_optimizer is not None:
        raise ConfigurationError(
            f"inner_lr={inner_lr} is the rate of the default inner optimizer, but inner_optimizer={inner_optimizer} is "
            "given too. Give the rate to that one, and leave out inner_lr (or give null, in YAML and on the command "
            "line)."
        )
    return SGD(inner_lr)


def per_step_norms(network: nn.Module, algorithm: GradientBased) -> dict[str, nn.Parameter]:
    """The scales and shifts of batch normalization for each inner step and for the query set, `(steps + 1, channels)`.

    Raises:
        ConfigurationError: There is no batch normalization, nothing is left to adapt, or evaluation has other steps.
    """
    if algorithm.val_inner_steps != algorithm.inner_steps:
        raise ConfigurationError(
            f"per_step_norm=True has scales and shifts for inner_steps={algorithm.inner_steps}, so val_inner_steps "
            f"cannot be {algorithm.val_inner_steps}. Leave it out."
        )
    layers = batch_normalized_layers(network)
    own = {f"{name}.{part}": p for name, layer in layers.items() for part, p in layer.named_parameters()}
    if not own:
        raise ConfigurationError(
            f"per_step_norm=True, but {type(network).__name__} has no batch normalization with scales and shifts."
        )
    if not set(algorithm.select(network)) - own.keys():
        raise ConfigurationError(f"per_step_norm=True leaves nothing of adapt_only={algorithm.adapt_only!r} to adapt.")
    count = algorithm.inner_steps + 1
    return {dict_key(name): nn.Parameter(torch.stack([param.detach()] * count)) for name, param in own.items()}
