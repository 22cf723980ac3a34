"""Model-agnostic meta-learning."""

from typing import Any

from torch import nn

from lightning_meta.functional.learner import Learner
from lightning_meta.inner import SGD, InnerOptimizer
from lightning_meta.modules.gradient_based import GradientBasedModule
from lightning_meta.modules.outcome import Outcome
from lightning_meta.task import Task


class MAMLModule(GradientBasedModule):
    r"""Learns initial parameters from which a few gradient steps solve a task.

    .. math::
        \min_\theta \frac{1}{B} \sum_b L^{query}_b(\phi_b), \qquad
        \phi_b = \theta - \alpha \nabla_\theta L^{support}_b(\theta) \text{ (and so on for more steps)}

    Papers: Finn, Abbeel, Levine 2017, arXiv:1703.03400 (MAML, and FOMAML with `first_order`); Raghu et al. 2020,
    arXiv:1909.09157 (ANIL, with `adapt_only="head"`).

    Args:
        network: Called as `network(inputs)` with `(examples, ...)`.
        inner_lr: The rate α of the default inner optimizer, plain gradient descent; 0.01 if `None`.
        inner_steps: Inner steps in meta-training.
        val_inner_steps: Inner steps in evaluation; `inner_steps` if `None`.
        first_order: Take inner gradients for constants (FOMAML): no second derivatives, less time and memory.
        inner_optimizer: Another inner optimizer, instead of `inner_lr`.
        kwargs: See `GradientBasedModule` and `MetaModule`: `adapt_only`, `transductive`, `loss`, `optimizer`,
            `lr_scheduler`, `gradient_clip_val`, `task_parallel`.

    Raises:
        ValueError: An argument does not make sense; the message says which and what to do.

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

    def __init__(
        self,
        network: nn.Module,
        inner_lr: float | None = None,
        inner_steps: int = 1,
        val_inner_steps: int | None = None,
        first_order: bool = False,
        inner_optimizer: InnerOptimizer | None = None,
        **kwargs: Any,
    ) -> None:
        if inner_lr is not None:
            if inner_optimizer is not None:
                raise ValueError(
                    f"inner_lr={inner_lr} is the rate of the default inner optimizer, but inner_optimizer="
                    f"{inner_optimizer} is given too. Give the rate to that one, and leave out inner_lr."
                )
            inner_optimizer = SGD(inner_lr)
        super().__init__(network, inner_optimizer, inner_steps, val_inner_steps, **kwargs)
        self.first_order = first_order

    def learn(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt to the support sets; the query losses of the adapted parameters are the objective."""
        adapted = self.adapt(learner, tasks, self.inner_steps, order=1 if self.first_order else 2)
        query = self.query_data(tasks, adapted.params)
        predictions = learner.predict(adapted.params, adapted.buffers, query.inputs)
        losses = self.task_losses(learner, predictions, query.targets)
        metrics = self.task_metrics(predictions.detach(), query.targets)
        metrics = {f"query_{name}": value for name, value in metrics.items()}
        if self.logs_this_step:
            metrics |= self._support_and_before(learner, tasks, adapted)
        return Outcome(losses, metrics, adapted.inner_losses)
