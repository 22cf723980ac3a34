"""Networks with context parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.models.mlp import MLP


class ContextMLP(nn.Module):
    """Linear layers with ReLU between them, which see a context besides each input: what CAVIA adapts.

    The default is the network of the sinusoid regression in Zintgraf et al. 2019, arXiv:1810.03642.

    Attributes:
        context: `(context_size,)`, zeros at first.
        mlp: Inputs and context, `(examples, in_features + context_size)`, to outputs.

    Args:
        in_features: Size of one input, flattened.
        out_features: Outputs: values to regress, or classes.
        hidden: Width of each hidden layer.
        context_size: Number of context parameters.

    Raises:
        ConfigurationError: A size is below 1, or there is no hidden layer.

    Example:
        >>> ContextMLP()(torch.zeros(10, 1)).shape
        torch.Size([10, 1])
    """

    def __init__(
        self, in_features: int = 1, out_features: int = 1, hidden: Sequence[int] = (40, 40), context_size: int = 5
    ) -> None:
        super().__init__()
        if type(context_size) is not int or context_size < 1:
            raise ConfigurationError(f"context_size must be a whole number of at least 1, got {context_size!r}.")
        self.context = nn.Parameter(torch.zeros(context_size))
        self.mlp = MLP(in_features + context_size, out_features, hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `(examples, out_features)` of inputs `(examples, ...)`."""
        x = inputs.flatten(1)
        outputs: Tensor = self.mlp(torch.cat([x, self.context.expand(len(x), -1)], 1))
        return outputs
