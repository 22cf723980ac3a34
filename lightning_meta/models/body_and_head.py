"""A network that is its head on its body."""

from typing import Any

from torch import nn


class BodyAndHead(nn.Module):
    """A network that is its head on its body, `head(body(inputs))`, as all networks of this package are.

    Where the inner loop changes the head only (ANIL), the body runs once on the support set, not in every inner step
    again: the same mathematics for less time. What is random in the body is drawn once then, and what it tracks is
    tracked once. A subclass with a `forward` of its own runs as a whole in every step.

    Attributes:
        body: Inputs `(examples, ...)` to features `(examples, features)`.
        head: Features to outputs `(examples, outputs)`.

    Args:
        body: The network below the head.
        head: The last layers.

    Example:
        >>> import torch
        >>> network = BodyAndHead(nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 5))
        >>> network(torch.zeros(2, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, inputs: Any) -> Any:
        """Outputs `(examples, outputs)` of inputs `(examples, ...)`."""
        return self.head(self.body(inputs))
