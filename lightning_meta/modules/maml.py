"""Model-agnostic meta-learning."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.functional.inner_loop import Order
from lightning_meta.functional.learner import Learner, Params, dict_key
from lightning_meta.functional.multi_step import multi_step_weights
from lightning_meta.functional.normalization import batch_normalized_layers
from lightning_meta.inner import SGD, InnerOptimizer
from lightning_meta.modules.adapting import Adapted
from lightning_meta.modules.gradient_based import GradientBasedModule
from lightning_meta.modules.outcome import Outcome
from lightning_meta.task import Task, number_of_tasks


class MAMLModule(GradientBasedModule):
    r"""Learns initial parameters from which a few gradient steps solve a task.

    .. math::
        \min_\theta \frac{1}{B} \sum_b L^{query}_b(\phi_b), \qquad
        \phi_b = \theta - \alpha \nabla_\theta L^{support}_b(\theta) \text{ (and so on for more steps)}

    Variants are settings of it:

    - FOMAML: `first_order=True`.
    - ANIL: `adapt_only="head"`. BOIL: `adapt_only="body"`.
    - Meta-SGD: `inner_optimizer=MetaSGD(lr)`.
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
        multi_step_loss_steps: For so many outer steps, descend a weighted mean of the query losses after every inner
            step, more and more of it the last one's: see `multi_step_weights`.
        first_order_steps: Be first-order for so many outer steps at the beginning.
        per_step_norm: Meta-learn the scales and shifts of batch normalization for each inner step and for the query
            set, and do not adapt them. The statistics are those of the batch at hand in each step. Evaluation has as
            many inner steps as meta-training.
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
        multi_step_loss_steps: int = 0,
        first_order_steps: int = 0,
        per_step_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        if inner_lr is not None:
            if inner_optimizer is not None:
                raise ValueError(
                    f"inner_lr={inner_lr} is the rate of the default inner optimizer, but inner_optimizer="
                    f"{inner_optimizer} is given too. Give the rate to that one, and leave out inner_lr (or give null, "
                    "in YAML and on the command line)."
                )
            inner_optimizer = SGD(inner_lr)
        self.per_step_norm = per_step_norm  # says which parameters are adapted
        super().__init__(network, inner_optimizer, inner_steps, val_inner_steps, **kwargs)
        self.first_order = first_order
        for name, steps in {
            "multi_step_loss_steps": multi_step_loss_steps,
            "first_order_steps": first_order_steps,
        }.items():
            if type(steps) is not int or steps < 0:
                raise ValueError(f"{name} is a number of outer steps, 0 for none; got {steps}.")
        if multi_step_loss_steps and not inner_steps:
            raise ValueError("multi_step_loss_steps needs inner steps after which to measure; inner_steps is 0.")
        self.multi_step_loss_steps = multi_step_loss_steps
        self.first_order_steps = first_order_steps
        if per_step_norm and self.val_inner_steps != inner_steps:
            raise ValueError(
                f"per_step_norm=True has scales and shifts for inner_steps={inner_steps}, so val_inner_steps cannot be "
                f"{val_inner_steps}. Leave it out."
            )
        self.norms_of_steps = nn.ParameterDict()
        """`(inner_steps + 1, channels)` for each scale and shift, under its name with `/` for `.`: by inner step, and
        for the query set."""
        if per_step_norm:
            own = dict(network.named_parameters())
            for name in self._norm_names():
                table = own[name].detach().expand(inner_steps + 1, *own[name].shape).clone()
                self.norms_of_steps[dict_key(name)] = nn.Parameter(table)

    def _norm_names(self) -> list[str]:
        """Names of the scales and shifts of batch normalization, in the order of the network."""
        layers = batch_normalized_layers(self.network)
        names = [f"{name}.{part}" for name, layer in layers.items() for part, _ in layer.named_parameters()]
        if not names:
            raise ValueError(
                f"per_step_norm=True, but {type(self.network).__name__} has no batch normalization with scales and "
                "shifts."
            )
        return names

    def select_adapted(self) -> tuple[str, ...]:
        """What `adapt_only` means; without scales and shifts that belong to a step."""
        names = super().select_adapted()
        if not self.per_step_norm:
            return names
        norms = self._norm_names()
        adapted = tuple(name for name in names if name not in norms)
        if not adapted:
            raise ValueError(f"per_step_norm=True leaves nothing of adapt_only={self.adapt_only!r} to adapt.")
        return adapted

    def adapt(self, learner: Learner, tasks: Task, steps: int, **kwargs: Any) -> Adapted:
        """Run the inner loop; with scales and shifts for each step, as many steps as those are for."""
        if self.per_step_norm and steps != self.inner_steps:
            raise ValueError(f"per_step_norm=True has scales and shifts for {self.inner_steps} steps, not for {steps}.")
        return super().adapt(learner, tasks, steps, **kwargs)

    def params_at(self, params: Params, step: int) -> Params:
        """The parameters, with the scales and shifts of this step."""
        if not self.per_step_norm:
            return params
        count = len(next(iter(params.values())))
        chosen = {name: self.norms_of_steps[dict_key(name)][step] for name in self._norm_names()}
        return params | {name: values.expand(count, *values.shape) for name, values in chosen.items()}

    @property
    def order(self) -> Order:
        """First order for FOMAML, and as long as `first_order_steps` says."""
        return 1 if self.first_order or self.outer_step < self.first_order_steps else 2

    def compile_key(self) -> Hashable | None:
        """It depends on the order, too; and while the weights of a multi-step loss change it is not compiled."""
        key = super().compile_key()
        return None if key is None or self.outer_step < self.multi_step_loss_steps else (key, self.order)

    def learn(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt; the objective is the query loss after the last inner step or, for a time, after every one."""
        if self.outer_step >= self.multi_step_loss_steps:
            return super().learn(learner, tasks)
        weights = multi_step_weights(self.inner_steps, self.outer_step / self.multi_step_loss_steps)
        early: list[Tensor] = []

        def measure(step: int, params: Params, _: Any) -> None:
            if 0 < step < self.inner_steps:
                query = self.query_data(tasks, params)
                buffers = learner.initial_buffers(number_of_tasks(tasks))
                predictions = learner.predict(self.params_at(params, step), buffers, query.inputs)
                early.append(self.task_losses(learner, predictions, query.targets))

        adapted = self.adapt(learner, tasks, self.inner_steps, order=self.order, on_step=measure)
        outcome = self.judged(learner, tasks, adapted)
        weighted = torch.stack([w * losses for w, losses in zip(weights, [*early, outcome.losses], strict=True)]).sum(0)
        return outcome._replace(losses=outcome.losses.detach() + weighted - weighted.detach())
