"""Inner learning rates that are meta-learned."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError, NetworkError
from lightning_meta.functional.network import Params, dict_key
from lightning_meta.inner.base import InnerOptimizer, check_rate, elementwise


class LearnedRates(InnerOptimizer, ABC):
    r"""Gradient descent at learned rates: the base of `MetaSGD` and `LSLR`, which differ in what shares a rate.

    Args:
        lr: Every rate's initial value.
        positive: Learn the logarithms of the rates, so that no rate becomes negative.

    Raises:
        ConfigurationError: `lr` is negative, or 0 where rates are to be positive.
    """

    def __init__(self, lr: float = 0.01, positive: bool = False) -> None:
        super().__init__()
        self.lr = check_rate("lr", lr)
        if positive and not lr > 0:
            raise ConfigurationError(f"Rates that are to be positive cannot start at lr={lr}.")
        self.positive = positive
        self.rates = nn.ParameterDict()
        """A tensor of rates (of their logarithms, if `positive`) for each parameter, under its name with `/` for `.`"""

    @abstractmethod
    def shape(self, param: Tensor, steps: int) -> tuple[int, ...]:
        """The shape of the rates of a parameter."""

    @abstractmethod
    def select(self, rates: Tensor, step: int) -> Tensor:
        """The rates of an inner step, of a shape that broadcasts against the parameter's."""

    def build(self, params: Params, steps: int) -> None:
        """Make the rates; those that are there already are kept.

        Raises:
            ConfigurationError: There are rates for other parameters already.
        """
        shapes = {dict_key(name): self.shape(param, steps) for name, param in params.items()}
        if self.rates:
            if {key: tuple(rates.shape) for key, rates in self.rates.items()} != shapes:
                raise ConfigurationError(
                    f"{type(self).__name__} has rates for other parameters, or another number of inner steps, already. "
                    "Give each module an inner optimizer of its own."
                )
            return
        start = math.log(self.lr) if self.positive else self.lr
        for name, param in params.items():
            rates = torch.full(shapes[dict_key(name)], start, dtype=param.dtype, device=param.device)
            self.rates[dict_key(name)] = nn.Parameter(rates)

    def rate(self, name: str, step: int) -> Tensor:
        """The rate, or rates, of a parameter in an inner step.

        Args:
            name: Of the parameter.
            step: The number of the inner step, from 0.

        Raises:
            NetworkError: There is none: the rates were made for another network, or not at all.
        """
        if dict_key(name) not in self.rates:
            raise NetworkError(
                f"{type(self).__name__} has no rate for the parameter {name!r}. The module that it is given to makes "
                "the rates for its network; outside of one, call build(params, steps) first."
            )
        rates = self.select(self.rates[dict_key(name)], step)
        return rates.exp() if self.positive else rates

    def init(self, params: Params) -> tuple[()]:
        """No state."""
        return ()

    @elementwise
    def update(
        self, grads: Params, state: Any, params: Params, *, loss: Tensor, step: int, **extra: Any
    ) -> tuple[Params, Any]:
        """One step of gradient descent."""
        return {name: param - self.rate(name, step) * grads[name] for name, param in params.items()}, state

    def learned(self) -> dict[str, Tensor]:
        """The mean of all rates, the smallest and the largest, to be logged."""
        every = torch.cat([rates.detach().flatten() for rates in self.rates.values()])
        every = every.exp() if self.positive else every
        return {"inner_lr": every.mean(), "inner_lr_min": every.min(), "inner_lr_max": every.max()}

    def extra_repr(self) -> str:
        """How the rates start."""
        return f"lr={self.lr}, positive={self.positive}"


class MetaSGD(LearnedRates):
    r"""A learned rate for each coordinate of each parameter: :math:`\phi \leftarrow \phi - \alpha \circ g`.

    Paper: Li, Zhou, Chen, Li 2017, arXiv:1707.09835 (Meta-SGD). Rates may become negative there, too.

    Args:
        lr: Every rate's initial value.
        positive: Learn the logarithms of the rates, so that no rate becomes negative.

    Raises:
        ConfigurationError: `lr` is negative, or 0 where rates are to be positive.

    Example:
        >>> import torch
        >>> optimizer, params = MetaSGD(lr=0.5), {"w": torch.tensor([1.0])}
        >>> optimizer.build(params, steps=1)
        >>> optimizer.update({"w": torch.tensor([0.2])}, (), params, loss=torch.tensor(0.0), step=0)[0]
        {'w': tensor([0.9000], grad_fn=<SubBackward0>)}
    """

    def shape(self, param: Tensor, steps: int) -> tuple[int, ...]:
        """That of the parameter."""
        return tuple(param.shape)

    def select(self, rates: Tensor, step: int) -> Tensor:
        """The same in every step."""
        return rates


class LSLR(LearnedRates):
    r"""A learned rate for each parameter tensor in each inner step.

    .. math:: \phi_l \leftarrow \phi_l - \alpha_{l,i}\,g_l

    Steps beyond those of meta-training use the last one's. Paper: Antoniou, Edwards, Storkey 2019, arXiv:1810.09502
    (MAML++: per-layer per-step learning rates).

    Args:
        lr: Every rate's initial value.
        positive: Learn the logarithms of the rates, so that no rate becomes negative.

    Raises:
        ConfigurationError: `lr` is negative, or 0 where rates are to be positive.
    """

    def shape(self, param: Tensor, steps: int) -> tuple[int, ...]:
        """One for each step."""
        return (max(steps, 1),)

    def select(self, rates: Tensor, step: int) -> Tensor:
        """That of the step."""
        return rates[min(step, len(rates) - 1)]
