"""Maximum pooling of many tasks: tasks are channels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from lightning_meta.functional.kernels.layout import apart, dense, is_last, merged

aten = torch.ops.aten


class Window(NamedTuple):
    """The arguments of torch's `max_pool2d`."""

    size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    ceil_mode: bool


HALVING = Window((2, 2), (2, 2), (0, 0), (1, 1), False)


def halved(x: Tensor, *, with_places: bool) -> tuple[Tensor, Tensor | None]:
    """The largest value in each 2x2 window of `(..., H, W)`, and its place in H x W: the first, row by row.

    As `max_pool2d_with_indices`, which is slower where channels are not last, for it compares value by value.
    """
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    upper, lower = x[..., 0:height:2, :width], x[..., 1:height:2, :width]
    of_columns = torch.maximum(upper, lower)
    left, right = of_columns[..., 0::2], of_columns[..., 1::2]
    y = torch.maximum(left, right)
    if not with_places:
        return y, None
    below = lower > upper
    below_left, below_right = below[..., 0::2], below[..., 1::2]
    on_right = (right > left) | ((right == left) & below_left & ~below_right)
    rows = torch.where(on_right, below_right, below_left).to(torch.int64)
    corners = torch.arange(0, height, 2).unsqueeze(1) * x.shape[-1] + torch.arange(0, width, 2)
    return y, rows.mul_(x.shape[-1]).add_(on_right).add_(corners)


class MaxPooling(Function):
    """The largest value in each window, of inputs `(examples, B, channels, H, W)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        """The largest values."""
        together = merged(x, as_groups=True)
        if not is_last(x.shape[1], x.dim(), x.dtype) and window == HALVING and min(x.shape[-2:]) > 1:
            y, places = halved(together, with_places=ctx.needs_input_grad[0])
        else:
            y, places = aten.max_pool2d_with_indices(together, *window)
        ctx.save_for_backward(x, places)
        ctx.window = window
        return apart(y, 1, x.shape[1:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Each gradient goes to the largest value of its window."""
        x, places = ctx.saved_tensors
        return OfMaxPooling.apply(dense(grad), x, places, ctx.window), None


class OfMaxPooling(Function):
    """The gradient of a maximum pooling, linear in the output's gradient."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, places: Tensor, window: Window) -> Tensor:
        """Put gradients where the largest values are."""
        ctx.save_for_backward(places)
        together = (merged(tensor, as_groups=True) for tensor in (grad, x))
        found: Tensor = aten.max_pool2d_with_indices_backward(*together, *window, places)
        return apart(found, 1, x.shape[1:3])

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        """Take them from there."""
        (places,) = ctx.saved_tensors
        taken = (
            direction.flatten(1, 2)
            .flatten(2)
            .gather(2, places.flatten(2))
            .view(*direction.shape[:3], *places.shape[2:])
        )
        return taken, None, None, None
