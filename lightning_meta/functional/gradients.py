"""Scalars that carry a gradient in hand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_meta.functional.network import Params


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
        total = total + _products(p, g).sum()
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
        total = total + _products(p, gradients[name]).reshape(len(p), -1).sum(1)
    return total


def _products(p: Tensor, g: Tensor) -> Tensor:
    """Zeros that have the gradient g in p; real ones, for complex parameters too."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    products = (p - p.detach()).to(dtype) * g.detach().to(dtype).conj()
    return products.real if products.is_complex() else products
