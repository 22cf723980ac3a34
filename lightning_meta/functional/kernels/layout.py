"""Tensors of many tasks: `(examples, B, channels, ...)`, with the tasks in the second dimension.

So tasks become groups of a convolution, channels of a normalization or images of a pooling without a copy, and weights
that all tasks still share (in the first inner step) are those of one ordinary layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """`(examples, B, ...)` without gaps, in the fastest order for torch: images of one task with channels last."""
    if x.shape[1] == 1 and x.dim() == 5:
        return x.squeeze(1).contiguous(memory_format=torch.channels_last).unsqueeze(1)
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
    if shape[1] == 1 and len(shape) == 5:
        size = (shape[0], *shape[2:])
        return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return merged(like.new_empty(shape), as_groups=as_groups)


def apart(y: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension `dim` cut into several, for a result: not a view, so that networks may go on in place (as ReLU may)."""
    found: Tensor = torch.ops.aten._unsafe_view(y, (*y.shape[:dim], *sizes, *y.shape[dim + 1 :]))
    return found


def is_shared(weight: Tensor) -> bool:
    """Whether all tasks have the same weights `(B, ...)`: there is one for all, or copies that are views of one."""
    return weight.shape[0] == 1 or weight.stride(0) == 0
