"""Gradient descent as an inner optimizer."""

from typing import Any

from torch import Tensor

from lightning_meta.functional.learner import Params
from lightning_meta.inner.base import InnerOptimizer


class SGD(InnerOptimizer):
    r"""Gradient descent at a fixed rate: :math:`\phi \leftarrow \phi - \alpha\,g`.

    The inner optimizer of MAML: Finn, Abbeel, Levine 2017, arXiv:1703.03400.

    Args:
        lr: The rate α, non-negative.

    Raises:
        ValueError: `lr` is negative or not a number.

    Example:
        >>> import torch
        >>> params, state = {"w": torch.tensor([1.0])}, ()
        >>> SGD(lr=0.5).update({"w": torch.tensor([0.2])}, state, params, loss=torch.tensor(0.0), step=0)[0]
        {'w': tensor([0.9000])}
    """

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        if not lr >= 0:
            raise ValueError(f"The inner learning rate must be 0 or more, got lr={lr}.")
        self.lr = lr

    def init(self, params: Params) -> tuple[()]:
        """No state."""
        return ()

    def update(
        self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int, **extra: Any
    ) -> tuple[Params, Any]:
        """One step of gradient descent."""
        return {name: param - self.lr * grads[name] for name, param in params.items()}, state

    def extra_repr(self) -> str:
        """The rate."""
        return f"lr={self.lr}"
