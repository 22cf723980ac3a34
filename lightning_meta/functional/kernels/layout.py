"""Tensors of many tasks: `(examples, B, channels, ...)`, with the tasks in the second dimension.

So tasks become groups of a convolution, channels of a normalization or images of a pooling without a copy, and weights
that all tasks still share (in the first inner step) are those of one ordinary layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FEWEST_POSITIONS_LAST = 49
"""Images of so many positions have their channels last; for smaller ones torch is faster with channels first."""


def has_channels_last(shape: Sequence[int]) -> bool:
    """Whether `(examples, B, channels, ...)` has the channels of all tasks last in memory."""
    return len(shape) == 5 and (shape[1] == 1 or shape[3] * shape[4] >= FEWEST_POSITIONS_LAST)


def dense(x: Tensor, like: Sequence[int] | None = None) -> Tensor:
    """`(examples, B, ...)` without gaps, in the order that torch is fastest with for a shape, its own if `None`.

    That is, for images, `(examples, height, width, B, channels)` in memory, or as it is read.
    """
    if x.dim() == 5 and has_channels_last(like or x.shape):
        return x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    return x.contiguous()


def merged(x: Tensor, *, as_groups: bool) -> Tensor:
    """`(examples, B, channels, ...)` as one batch, with the tasks among the channels or among the examples."""
    if x.shape[1] > 1:
        return x.flatten(1, 2) if as_groups else x.flatten(0, 1)
    x = dense(x).squeeze(1)
    if x.dim() == 4 and x.shape[1] == 1:  # torch takes one channel for channels first, unless strides say otherwise
        x = x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x


def placeholder(like: Tensor, shape: Sequence[int], *, as_groups: bool) -> Tensor:
    """A tensor of which torch reads the shape only, merged like one of shape `(examples, B, channels, ...)`."""
    if has_channels_last(shape):
        n, tasks, channels, height, width = shape
        return merged(like.new_empty(n, height, width, tasks, channels).permute(0, 3, 4, 1, 2), as_groups=as_groups)
    return merged(like.new_empty(shape), as_groups=as_groups)


def apart(y: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension `dim` cut into several, for a result: not a view, so that networks may go on in place (as ReLU may)."""
    found: Tensor = torch.ops.aten._unsafe_view(y, (*y.shape[:dim], *sizes, *y.shape[dim + 1 :]))
    return found


def is_shared(weight: Tensor) -> bool:
    """Whether all tasks have the same weights `(B, ...)`: there is one for all, or copies that are views of one."""
    return weight.shape[0] == 1 or weight.stride(0) == 0
