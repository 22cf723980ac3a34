"""Adam as an inner optimizer."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.network import Params
from lightning_meta.inner.base import InnerOptimizer, check_rate


class Adam(InnerOptimizer):
    r"""Adam, differentiable through its whole trajectory; after any number of steps equal to `torch.optim.Adam`.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
        \phi \leftarrow \phi - \alpha \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Papers: Kingma, Ba 2015, arXiv:1412.6980; as Reptile's inner optimizer, with β₁ = 0: Nichol, Achiam, Schulman 2018,
    arXiv:1803.02999.

    Where a gradient has been exactly zero so far, the root is taken for a constant: its own derivative is infinite, and
    the update's then is that of `m / ε`. With second-order meta-gradients a larger `eps` keeps that tame.

    Args:
        lr: The rate α, non-negative.
        betas: β₁ and β₂, each at least 0 and below 1.
        eps: The summand ε of the denominator, positive.
        weight_decay: λ of :math:`g + \lambda\phi`, which takes the place of g; non-negative.

    Raises:
        ConfigurationError: A number is out of its range.

    Example:
        >>> import torch
        >>> optimizer, params = Adam(lr=0.1), {"w": torch.tensor([1.0])}
        >>> state = optimizer.init(params)
        >>> optimizer.update({"w": torch.tensor([0.2])}, state, params, loss=torch.tensor(0.0), step=0)[0]
        {'w': tensor([0.9000])}
    """

    def __init__(
        self,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.lr = check_rate("lr", lr)
        self.weight_decay = check_rate("weight_decay", weight_decay)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigurationError(f"betas must be two numbers of at least 0 and below 1, got {betas}.")
        if not eps > 0:
            raise ConfigurationError(f"eps must be positive, got {eps}.")
        self.betas = (betas[0], betas[1])
        self.eps = eps

    def init(self, params: Params) -> dict[str, Any]:
        """The number of steps taken, and both moments of each parameter."""
        some = next(iter(params.values()))
        return {
            "steps": torch.zeros((), dtype=torch.promote_types(some.dtype, torch.float32), device=some.device),
            "first": {name: torch.zeros_like(param) for name, param in params.items()},
            "second": {name: torch.zeros_like(param) for name, param in params.items()},
        }

    def update(
        self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int, **extra: Any
    ) -> tuple[Params, Any]:
        """One step of Adam."""
        beta1, beta2 = self.betas
        steps = state["steps"] + 1
        correction1, correction2 = (_one_minus_power(beta, steps) for beta in self.betas)
        first, second, new = {}, {}, {}
        for name, param in params.items():
            grad = grads[name] + self.weight_decay * param if self.weight_decay else grads[name]
            first[name] = m = beta1 * state["first"][name] + (1 - beta1) * grad
            second[name] = v = beta2 * state["second"][name] + (1 - beta2) * grad.square()
            root = torch.where(v > 0, v, 1).sqrt() * (v > 0)  # the derivative of sqrt at 0 would be NaN
            ratio = (m / correction1) / (root / correction2.sqrt() + self.eps)
            new[name] = param - self.lr * ratio.to(param.dtype)
        return new, {"steps": steps, "first": first, "second": second}

    def extra_repr(self) -> str:
        """The settings."""
        return f"lr={self.lr}, betas={self.betas}, eps={self.eps}, weight_decay={self.weight_decay}"


def _one_minus_power(beta: float, steps: Tensor) -> Tensor:
    """`1 - beta ** steps` without cancellation, which in float32 would cost four digits at β₂ = 0.999."""
    return -torch.expm1(steps * (math.log(beta) if beta > 0 else -math.inf))
