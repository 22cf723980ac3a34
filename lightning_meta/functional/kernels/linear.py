"""Linear layers of many tasks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_meta.functional.kernels.bilinear import Exact, Multiply, multiply_rounded
from lightning_meta.functional.kernels.layout import apart, is_shared
from lightning_meta.functional.kernels.vmap import OfTasks

# Below this number of weights, to treat those that tasks still share as one saves less than it costs.
SMALLEST = 2**14


def _rows(x: Tensor) -> Tensor:
    """`(examples, B, ..., features)` as `(B, rows, features)`."""
    return x.movedim(1, 0).flatten(1, -2)


class Linear:
    """Inputs `(examples, B, ..., features)` times weights `(B, out, features)`: see `Layer`."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The products, with the biases."""
        if is_shared(weight) and (bias is None or is_shared(bias)):
            return apart(F.linear(x, weight[0], None if bias is None else bias[0]), 0, x.shape[:1])
        rows, tasks = _rows(x), x.shape[1]
        weight = weight.expand(tasks, -1, -1).transpose(1, 2)
        y = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
        y = apart(y, 1, (x.shape[0], *x.shape[2:-1])).movedim(0, 1)
        return y.clone(memory_format=torch.contiguous_format)  # no view, so that networks may go on in place

    def shifted(self, y: Tensor, bias: Tensor) -> Tensor:
        """See `Layer`."""
        return y + bias.reshape(1, len(bias), *(1,) * (y.dim() - 3), bias.shape[1])

    def of_input(self, grad: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        if is_shared(weight):
            return grad @ weight[0]
        return apart(torch.bmm(_rows(grad), weight), 1, (shape[0], *shape[2:-1])).movedim(0, 1)

    def of_weight(self, grad: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        if shape[0] == 1:
            return (grad.flatten(0, -2).t() @ x.flatten(0, -2)).unsqueeze(0)
        return torch.bmm(_rows(grad).transpose(1, 2), _rows(x))

    def of_bias(self, grad: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        each = grad.sum([0, *range(2, grad.dim() - 1)])
        return each.sum(0, keepdim=True) if shape[0] == 1 else each


def linear(x: OfTasks, weight: OfTasks, bias: OfTasks | None, *, rounds: bool) -> tuple[Tensor, int]:
    """A linear layer of all tasks, and the dimension that the tasks are in.

    Args:
        x: Each task's inputs `(..., features)`.
        weight: Weights `(out, features)`.
        bias: Biases `(out,)`.
        rounds: Whether products are to be in bfloat16. Those with few weights are not: they gain nothing by it.
    """
    if rounds:
        biases = None if bias is None else bias.first
        if weight.first[0].numel() >= SMALLEST:
            y = multiply_rounded(x.second.bfloat16(), weight.first, None, Linear()).float()
            return y if biases is None else Linear().shifted(y, biases), 1
        return Multiply.apply(x.second, weight.first, biases, Exact(Linear())), 1
    if x.dim is None and weight.dim is None and (bias is None or bias.dim is None):  # a single task
        return F.linear(x.tensor, weight.tensor, None if bias is None else bias.tensor).unsqueeze(0), 0
    weights, biases = weight.first, None if bias is None else bias.first
    if len(weights) == 1 or weights[0].numel() >= SMALLEST:
        return Multiply.apply(x.second, weights, biases, Linear()), 1
    inputs = x.first if len(x.first) == x.number else x.first.expand(x.number, *x.tensor.shape)
    rows = inputs if inputs.dim() == 3 else inputs.flatten(1, -2)
    columns = weights.transpose(1, 2)
    y = torch.bmm(rows, columns) if biases is None else torch.baddbmm(biases.unsqueeze(1), rows, columns)
    return y if inputs.dim() == 3 else y.view(*inputs.shape[:-1], -1), 0
