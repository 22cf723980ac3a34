"""Gradients of losses that are scaled up, and scalars that carry a gradient in hand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lightning_meta.functional.network import Params


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


def touch(loss: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The same loss, connected to every parameter: those it does not depend on get a zero gradient instead of none.

    Distributed training waits for a gradient of every trainable parameter.

    Args:
        loss: A scalar.
        params: The trainable parameters, of any shapes.
    """
    touched: Tensor = _Touch.apply(loss, *params)
    return touched


class _Touch(Function):
    """The first argument, with a gradient of zero in the others."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(*params)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, *(torch.zeros_like(param) for param in ctx.saved_tensors)


def surrogate(loss: Tensor, params: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    r"""A scalar with the value of `loss` and the given gradient.

    .. math:: \mathrm{loss} + \sum_p \langle p - \mathrm{sg}(p),\, g_p \rangle

    with the stop-gradient sg. The products are elementwise and at least float32, so autocast does not round them.

    Args:
        loss: A scalar; only its value is used.
        params: The trainable parameters, of any shapes.
        gradients: The gradient of each, of the same shape.

    Example:
        >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> scalar = surrogate(torch.tensor(5.0), [p], [torch.tensor([0.5, -1.0])])
        >>> scalar.backward()
        >>> scalar.item(), p.grad.tolist()
        (5.0, [0.5, -1.0])
    """
    total = loss.detach()
    for p, g in zip(params, gradients, strict=True):
        dtype = torch.promote_types(p.dtype, torch.float32)
        total = total + ((p - p.detach()).to(dtype) * g.detach().to(dtype)).sum()
    return total


def task_surrogates(losses: Tensor, params: Params, gradients: Params) -> Tensor:
    """The same as `surrogate`, for each task of a batch.

    Args:
        losses: `(B,)`; only the values are used.
        params: The initial parameters, one copy for each task: `(B, *shape)`.
        gradients: The meta-gradient of each task, of the same names and shapes.

    Returns:
        `(B,)` scalars.
    """
    total = losses.detach()
    for name, p in params.items():
        dtype = torch.promote_types(p.dtype, torch.float32)
        product = (p - p.detach()).to(dtype) * gradients[name].detach().to(dtype)
        total = total + product.reshape(len(p), -1).sum(1)
    return total
