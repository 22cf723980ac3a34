"""Fully connected networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.models.body_and_head import BodyAndHead


class MLP(BodyAndHead):
    """Linear layers with ReLU between them.

    The default is the network of the sinusoid regression in Finn et al. 2017, arXiv:1703.03400. Their fully connected
    Omniglot network is `MLP(784, 5, hidden=[256, 128, 64, 64], norm="batch")`.

    Attributes:
        body: Inputs `(examples, ...)`, flattened, to features `(examples, hidden[-1])`.
        head: Features to outputs `(examples, out_features)`.

    Args:
        in_features: Size of one input, flattened.
        out_features: Outputs: values to regress, or classes.
        hidden: Width of each hidden layer.
        norm: Whether hidden layers are batch-normalized.

    Raises:
        ConfigurationError: A size is below 1, there is no hidden layer, or `norm` is not a possible value.

    Example:
        >>> import torch
        >>> MLP()(torch.zeros(10, 1)).shape
        torch.Size([10, 1])
    """

    def __init__(
        self,
        in_features: int = 1,
        out_features: int = 1,
        hidden: Sequence[int] = (40, 40),
        norm: Literal["batch", "none"] = "none",
    ) -> None:
        sizes = [in_features, out_features, *(hidden or [0])]
        if any(type(size) is not int or size < 1 for size in sizes):
            raise ConfigurationError(
                "An MLP needs at least one hidden layer and sizes of at least 1, got "
                f"in_features={in_features}, hidden={hidden!r}, out_features={out_features}."
            )
        if norm not in ("batch", "none"):
            raise ConfigurationError(f"norm must be 'batch' or 'none', got {norm!r}.")
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise([in_features, *hidden]):
            layers.append(nn.Linear(before, after))
            if norm == "batch":
                layers.append(nn.BatchNorm1d(after, track_running_stats=False))
            layers.append(nn.ReLU())
        super().__init__(nn.Sequential(*layers), nn.Linear(hidden[-1], out_features))
