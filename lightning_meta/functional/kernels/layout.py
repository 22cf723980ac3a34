"""Tensors of many tasks: `(examples, B, channels, ...)`, with the tasks in the second dimension.

So tasks become groups of a convolution, channels of a normalization or images of a pooling without a copy, and weights
that all tasks still share (in the first inner step) are those of one ordinary layer.

Images of one task, and all in bfloat16, have their channels last in memory, which torch is fastest with; those of many
tasks in float32 have them first, for torch's batch normalization adds up less exactly where they are last.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_last(tasks: int, dims: int, dtype: torch.dtype) -> bool:
    """Whether tensors `(examples, B, channels, ...)` of so many dimensions have all tasks' channels last in memory."""
    return dims == 5 and (tasks == 1 or dtype == torch.bfloat16)


def dense(x: Tensor) -> Tensor:
    """`(examples, B, ...)` without gaps, in the order that is best for torch."""
    if is_last(x.shape[1], x.dim(), x.dtype):
        return x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    return x.contiguous()


def dense_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights `(B, out, in, ...)` without gaps, in the order of the tensors they are for; views of one stay so."""
    if is_shared(weight):
        return weight[:1].to(dtype).expand_as(weight)
    order = (0, 1, 3, 4, 2) if is_last(len(weight), weight.dim(), dtype) else tuple(range(weight.dim()))
    if weight.dtype == dtype and weight.permute(order).is_contiguous():
        return weight
    return torch.empty_permuted(weight.shape, order, dtype=dtype).copy_(weight)


def merged(x: Tensor, *, as_groups: bool) -> Tensor:
    """`(examples, B, channels, ...)` as one batch, with the tasks among the channels or among the examples."""
    if not is_last(x.shape[1], x.dim(), x.dtype):
        return x.flatten(1, 2) if as_groups else x.flatten(0, 1)
    x = dense(x).flatten(1, 2) if as_groups else x.permute(0, 1, 3, 4, 2).contiguous().flatten(0, 1).permute(0, 3, 1, 2)
    if x.shape[1] == 1:  # torch takes one channel for channels first, unless strides say otherwise
        x = x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x


def placeholder(like: Tensor, shape: Sequence[int], *, as_groups: bool) -> Tensor:
    """A tensor of which torch reads the shape only, merged like one of shape `(examples, B, channels, ...)`."""
    n, tasks, channels, *rest = shape
    size = (n, tasks * channels, *rest) if as_groups else (n * tasks, channels, *rest)
    return empty(like, size, tasks)


def empty(like: Tensor, size: Sequence[int], tasks: int) -> Tensor:
    """A tensor of which torch reads the shape only, `(examples, channels, ...)` or weights of so many tasks."""
    order = torch.channels_last if is_last(tasks, len(size) + 1, like.dtype) else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=order)


def apart(y: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension `dim` cut into several, for a result: not a view, so that networks may go on in place (as ReLU may)."""
    found: Tensor = torch.ops.aten._unsafe_view(y, (*y.shape[:dim], *sizes, *y.shape[dim + 1 :]))
    return found


def is_shared(weight: Tensor) -> bool:
    """Whether all tasks have the same weights `(B, ...)`: there is one for all, or copies that are views of one."""
    return weight.shape[0] == 1 or weight.stride(0) == 0
