"""How a policy acts: distributions over actions, as nestings of tensors that a network returns."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor


@runtime_checkable
class Actions(Protocol):
    """What a policy returns: a NamedTuple of tensors `(..., n)` with these methods.

    It passes `torch.vmap` and is cut into tasks as any prediction is; the leading dimensions are those of the
    observations.
    """

    def sample(self, uniforms: Tensor) -> Tensor:
        """Actions drawn with random numbers in [0, 1), float64: `(..., size)` for a `Box`, `(..., 1)` for choices."""
        ...

    def mode(self) -> Tensor:
        """The most probable actions."""
        ...

    def log_probabilities(self, actions: Tensor) -> Tensor:
        """Of actions, `(...)`."""
        ...

    def entropies(self) -> Tensor:
        """In nats, `(...)`."""
        ...


class GaussianActions(NamedTuple):
    """Real numbers, normally distributed, each by itself.

    Attributes:
        mean: `(..., size)`.
        log_std: The logarithm of the standard deviation, `(..., size)`.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, uniforms: Tensor) -> Tensor:
        """`mean + std * noise`."""
        # The inverse of the distribution function, away from where that is infinite.
        noise = torch.erfinv((2 * uniforms - 1).clamp(-1 + 2.0**-52, 1 - 2.0**-52)) * math.sqrt(2)
        return self.mean + self.log_std.exp() * noise.to(self.mean)

    def mode(self) -> Tensor:
        """The means."""
        return self.mean

    def log_probabilities(self, actions: Tensor) -> Tensor:
        """Of the density."""
        away = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * away.square() - self.log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * self.mean.shape[-1]

    def entropies(self) -> Tensor:
        """Of the density."""
        return self.log_std.sum(-1) + 0.5 * (1 + math.log(2 * math.pi)) * self.mean.shape[-1]


class CategoricalActions(NamedTuple):
    """Choices, numbered from 0.

    Attributes:
        logits: `(..., choices)`.
    """

    logits: Tensor

    def sample(self, uniforms: Tensor) -> Tensor:
        """The choice into whose share of the interval from 0 to 1 the random number falls."""
        shares = self.logits.to(torch.float64).softmax(-1).cumsum(-1)
        return (uniforms.to(shares) >= shares[..., :-1]).sum(-1)

    def mode(self) -> Tensor:
        """The most probable choice."""
        return self.logits.argmax(-1)

    def log_probabilities(self, actions: Tensor) -> Tensor:
        """Of the choices."""
        return F.log_softmax(self.logits, -1).gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropies(self) -> Tensor:
        """Of the choices."""
        log = F.log_softmax(self.logits, -1)
        return -torch.where(log.isfinite(), log.exp() * log.masked_fill(~log.isfinite(), 0), 0).sum(-1)


class UniformActions(NamedTuple):
    """Real numbers from -1 to 1, all alike: what a policy that has learned nothing does.

    Attributes:
        like: Any tensor `(..., size)`.
    """

    like: Tensor

    def sample(self, uniforms: Tensor) -> Tensor:
        """Stretched to -1 to 1."""
        return (2 * uniforms - 1).to(self.like)

    def mode(self) -> Tensor:
        """The middle."""
        return torch.zeros_like(self.like)

    def log_probabilities(self, actions: Tensor) -> Tensor:
        """The same for all."""
        return (0 * self.like - math.log(2)).sum(-1)

    def entropies(self) -> Tensor:
        """The logarithm of the volume."""
        return (0 * self.like + math.log(2)).sum(-1)
