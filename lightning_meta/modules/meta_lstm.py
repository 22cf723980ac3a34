"""Meta-LSTM."""

from typing import Any

from torch import nn

from lightning_meta.functional.inner_loop import Order
from lightning_meta.inner import InnerOptimizer, LSTMOptimizer
from lightning_meta.modules.gradient_based import GradientBasedModule


class MetaLSTMModule(GradientBasedModule):
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
        val_inner_steps: Inner steps in evaluation; `inner_steps` if `None`.
        second_order: Differentiate through the learner's gradients, too.
        gradient_clip_val: Largest norm of the meta-gradient, as in the released code.
        kwargs: See `GradientBasedModule` and `MetaModule`: `transductive`, `adapt_only`, `loss`, `optimizer`,
            `lr_scheduler`, `task_parallel`.

    Raises:
        ValueError: An argument does not make sense; the message says which and what to do.

    Example:
        >>> import torch
        >>> from lightning_meta import Examples, Task
        >>> module = MetaLSTMModule(nn.Linear(4, 3), inner_steps=2)
        >>> inputs, targets = torch.randn(2, 6, 4), torch.tensor([0, 0, 1, 1, 2, 2]).expand(2, 6)
        >>> module.meta_loss(Task(Examples(inputs, targets), Examples(inputs, targets))).backward()
        >>> bool(module.inner_optimizer.bias_input.grad)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        inner_optimizer: InnerOptimizer | None = None,
        inner_steps: int = 12,
        val_inner_steps: int | None = None,
        second_order: bool = False,
        gradient_clip_val: float | None = 0.25,
        **kwargs: Any,
    ) -> None:
        inner_optimizer = LSTMOptimizer() if inner_optimizer is None else inner_optimizer
        super().__init__(
            network, inner_optimizer, inner_steps, val_inner_steps, gradient_clip_val=gradient_clip_val, **kwargs
        )
        self.second_order = second_order

    @property
    def order(self) -> Order:
        """First order unless asked for more."""
        return 2 if self.second_order else 1
