"""Gradient descent as an inner optimizer."""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.network import Params
from lightning_meta.inner.base import InnerOptimizer, check_rate, elementwise


class SGD(InnerOptimizer):
    r"""Gradient descent at a fixed rate, the inner optimizer of MAML: :math:`\phi \leftarrow \phi - \alpha\,g`.

    With momentum μ and weight decay λ, as `torch.optim.SGD` has it,

    .. math:: v \leftarrow \mu v + g + \lambda\phi, \qquad \phi \leftarrow \phi - \alpha v,

    and with Nesterov's momentum :math:`\phi \leftarrow \phi - \alpha (g + \lambda\phi + \mu v)`.
    Paper: Finn, Abbeel, Levine 2017, arXiv:1703.03400.

    Args:
        lr: The rate α, non-negative; or a list with the rate of each inner step, the last one's for all that follow.
        momentum: The coefficient μ, non-negative.
        nesterov: Whether momentum is Nesterov's.
        weight_decay: The coefficient λ, non-negative.

    Raises:
        ConfigurationError: A number is negative or none, or `nesterov` is set without momentum.

    Example:
        >>> import torch
        >>> params, state = {"w": torch.tensor([1.0])}, ()
        >>> SGD(lr=0.5).update({"w": torch.tensor([0.2])}, state, params, loss=torch.tensor(0.0), step=0)[0]
        {'w': tensor([0.9000])}
    """

    def __init__(
        self,
        lr: float | list[float] = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        rates = list(lr) if isinstance(lr, list | tuple) else [lr]
        if not rates:
            raise ConfigurationError("lr is an empty list. Give a rate, or one for each inner step.")
        self.rates = [check_rate("lr", rate) for rate in rates]
        self.lr = lr
        self.momentum = check_rate("momentum", momentum)
        self.weight_decay = check_rate("weight_decay", weight_decay)
        if nesterov and not momentum:
            raise ConfigurationError("nesterov=True needs a momentum above 0.")
        self.nesterov = nesterov

    def init(self, params: Params) -> Any:
        """The velocity of each parameter, where there is momentum."""
        return {name: torch.zeros_like(param) for name, param in params.items()} if self.momentum else ()

    @elementwise
    def update(
        self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int, **extra: Any
    ) -> tuple[Params, Any]:
        """One step of gradient descent."""
        if self.weight_decay:
            grads = {name: grads[name] + self.weight_decay * param for name, param in params.items()}
        directions = grads
        if self.momentum:
            state = {name: self.momentum * state[name] + grads[name] for name in params}
            directions = state
            if self.nesterov:
                directions = {name: grads[name] + self.momentum * state[name] for name in params}
        rate = self.rates[min(step, len(self.rates) - 1)]
        return {name: torch.add(param, directions[name], alpha=-rate) for name, param in params.items()}, state

    def extra_repr(self) -> str:
        """The settings that matter."""
        settings = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        return ", ".join([f"lr={self.lr}", *(f"{name}={value}" for name, value in settings.items() if value)])
