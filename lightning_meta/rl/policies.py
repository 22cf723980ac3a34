"""Networks that say how to act."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.rl.actions import CategoricalActions, GaussianActions, UniformActions

Activation = Literal["tanh", "relu"]
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class GaussianPolicy(nn.Module):
    r"""Acts by real numbers: normally distributed around what a network returns, with deviations that are parameters.

    .. math::
        a \sim N(f(s), \sigma^2), \qquad
        \log \sigma = \log \sigma_{min} + \mathrm{softplus}(\rho - \log\sigma_{min})

    ρ is the parameter `log_std`, which is nearly log σ well above the floor. The floor keeps a policy that is sure of
    its actions from taking ever larger inner steps, since gradients grow as 1/σ. `adapt_only="network"` leaves σ out
    of the inner loop.

    Args:
        observation_size: How many numbers an observation is, for the default network.
        action_size: How many numbers an action is. -1 to 1 stands for the range of the environment's actions.
        hidden: Units of each hidden layer of the default network.
        activation: After each of these.
        std: σ at the start.
        min_std: The floor of σ.
        network: Another network: maps observations `(n, *observation)` to means `(n, action_size)`.
        observation_dims: How many dimensions one observation has.

    Raises:
        ConfigurationError: A size is below 1, `std` is not above `min_std`, or that is not above 0.

    Example:
        >>> policy = GaussianPolicy(observation_size=3, action_size=2)
        >>> policy(torch.zeros(20, 100, 3)).mean.shape  # of 20 episodes of 100 steps
        torch.Size([20, 100, 2])
    """

    def __init__(
        self,
        observation_size: int = 2,
        action_size: int = 2,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        std: float = 1.0,
        min_std: float = 0.01,
        network: nn.Module | None = None,
        observation_dims: int = 1,
    ) -> None:
        super().__init__()
        if not std > min_std > 0:
            raise ConfigurationError(f"std must be above min_std, and that above 0; got std={std}, min_std={min_std}.")
        self.network = network or layers(observation_size, hidden, action_size, activation)
        self.least = math.log(min_std)
        start = self.least + math.log(math.expm1(math.log(std) - self.least))  # the inverse of the softplus
        self.log_std = nn.Parameter(torch.full((action_size,), start))
        self.observation_dims = observation_dims

    def forward(self, observations: Tensor) -> GaussianActions:
        """How to act on observations `(..., *observation)`."""
        means = over_leading(self.network, observations, self.observation_dims)
        log_std = self.least + F.softplus(self.log_std - self.least)
        return GaussianActions(means, log_std.to(means).expand_as(means))


class CategoricalPolicy(nn.Module):
    """Acts by choices, with the logits that a network returns.

    Args:
        observation_size: How many numbers an observation is, for the default network.
        choices: How many there are.
        hidden: Units of each hidden layer of the default network.
        activation: After each of these.
        network: Another network: maps observations `(n, *observation)` to logits `(n, choices)`.
        observation_dims: How many dimensions one observation has.

    Raises:
        ConfigurationError: A size is below 1.

    Example:
        >>> CategoricalPolicy(observation_size=4, choices=2)(torch.zeros(20, 4)).logits.shape
        torch.Size([20, 2])
    """

    def __init__(
        self,
        observation_size: int = 4,
        choices: int = 2,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        network: nn.Module | None = None,
        observation_dims: int = 1,
    ) -> None:
        super().__init__()
        self.network = network or layers(observation_size, hidden, choices, activation)
        self.observation_dims = observation_dims

    def forward(self, observations: Tensor) -> CategoricalActions:
        """How to act on observations `(..., *observation)`."""
        return CategoricalActions(over_leading(self.network, observations, self.observation_dims))


class RandomPolicy(nn.Module):
    """Acts at random and learns nothing: what others have to be better than.

    Args:
        action_size: How many numbers an action is, each from the whole of its range.
        choices: How many choices there are, instead.
        observation_dims: How many dimensions one observation has.

    Raises:
        ConfigurationError: Both or neither are given.

    Example:
        >>> RandomPolicy(action_size=2)(torch.zeros(5, 3)).sample(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, action_size: int | None = None, choices: int | None = None, observation_dims: int = 1) -> None:
        super().__init__()
        if (action_size is None) == (choices is None):
            raise ConfigurationError(f"Give action_size or choices, got action_size={action_size}, choices={choices}.")
        self.is_discrete, self.observation_dims = choices is not None, observation_dims
        size = choices if action_size is None else action_size
        self.nothing = nn.Parameter(torch.zeros(size or 1))
        """Has no effect; a module needs a parameter."""

    def forward(self, observations: Tensor) -> CategoricalActions | UniformActions:
        """How to act on observations `(..., *observation)`: the same whatever they are."""
        leading = observations.shape[: observations.dim() - self.observation_dims]
        values = (0 * self.nothing).expand(*leading, len(self.nothing))
        return CategoricalActions(values) if self.is_discrete else UniformActions(values)


def over_leading(network: nn.Module, observations: Tensor, dims: int) -> Tensor:
    """What a network makes of observations `(..., *observation)` of `dims` dimensions each: `(..., outputs)`."""
    cut = observations.dim() - dims
    if cut == 1:
        found: Tensor = network(observations)
        return found
    leading = observations.shape[:cut]
    found = network(observations.reshape(-1, *observations.shape[cut:]))
    return found.reshape(*leading, *found.shape[1:])


def layers(inputs: int, hidden: Sequence[int], outputs: int, activation: Activation) -> nn.Sequential:
    """Linear layers with an activation between them.

    Raises:
        ConfigurationError: A size is below 1, or there is no such activation.
    """
    sizes = [inputs, *hidden, outputs]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ConfigurationError(f"Sizes of a policy must be whole numbers of at least 1, got {sizes}.")
    if activation not in _ACTIVATIONS:
        raise ConfigurationError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}.")
    found: list[nn.Module] = []
    for before, after in pairwise(sizes):
        found += [nn.Linear(before, after), _ACTIVATIONS[activation]()]
    return nn.Sequential(*found[:-1])
