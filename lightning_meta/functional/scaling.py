"""Gradients of a loss that is scaled up while they are computed, so that half precision does not lose them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def scaled_gradients(
    output: Tensor,
    inputs: Sequence[Tensor],
    scale: float = 1.0,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    r"""The gradient of a scalar, computed as that of `scale` times the scalar and divided by `scale`.

    Values on the way are `scale` times as large, so that under float16, whose smallest number is 6e-8, small ones do
    not become zero. Paper: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.

    Args:
        output: A scalar.
        inputs: Tensors of any shape that require grad, float32 or float64; the result is zero where `output` does not
            depend on them.
        scale: A positive number.
        create_graph: Whether the result is differentiable.
        retain_graph: Whether the graph is kept; if `None`, where the result is differentiable.

    Returns:
        The gradient of each input, of its shape and type.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> scaled_gradients(x.square(), [x], 1024.0)
        (tensor(6.),)
    """
    if scale != 1:
        output = output.to(torch.promote_types(output.dtype, torch.float32)) * scale
    gradients = torch.autograd.grad(
        output, inputs, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )
    return gradients if scale == 1 else tuple(gradient / scale for gradient in gradients)
