"""Maximum pooling of many tasks: tasks are channels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from lightning_meta.functional.kernels.layout import apart, dense, merged

aten = torch.ops.aten


class Window(NamedTuple):
    """The arguments of torch's `max_pool2d`."""

    size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    ceil_mode: bool


class MaxPooling(Function):
    """The largest value in each window, of inputs `(examples, B, channels, H, W)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        """The largest values."""
        y, places = aten.max_pool2d_with_indices(merged(x, as_groups=True), *window)
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
