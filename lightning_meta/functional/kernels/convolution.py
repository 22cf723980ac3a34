"""Convolutions of many tasks: tasks are groups of one convolution."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.functional.kernels.layout import apart, dense, has_channels_last, is_shared, merged, placeholder

aten = torch.ops.aten


class Convolution(NamedTuple):
    """How a convolution goes over inputs `(examples, B, channels, ...)`: see `Layer`.

    Attributes:
        stride: For each spatial dimension, and so the next two.
        padding: Zeros on both sides.
        dilation: The distance of the kernel's elements.
        groups: Of each task's channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def _arguments(self, tasks: int) -> tuple[Any, ...]:
        """The arguments of torch's convolution of so many tasks."""
        return self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), self.groups * tasks

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve inputs with weights `(B, out, channels, ...)`."""
        n, tasks = x.shape[:2]
        if _is_one(weight, x.shape):
            fused = bias is None or is_shared(bias)
            own = bias[0] if bias is not None and fused else None
            y = aten.convolution(merged(x, as_groups=False), weight[0], own, *self._arguments(1))
            y = apart(y, 0, (n, tasks))
            return y if bias is None or fused else self.shifted(y, bias)
        own = None if bias is None else bias.expand(tasks, -1).flatten().contiguous()
        y = aten.convolution(merged(x, as_groups=True), _of_groups(weight, tasks), own, *self._arguments(tasks))
        return apart(y, 1, (tasks, weight.shape[1]))

    def shifted(self, y: Tensor, bias: Tensor) -> Tensor:
        """See `Layer`."""
        return y + bias.reshape(1, *bias.shape, *(1,) * (y.dim() - 3))

    def of_input(self, grad: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        as_groups, tasks = not _is_one(weight, shape), grad.shape[1]
        found: Tensor = aten.convolution_backward(
            merged(dense(grad, shape), as_groups=as_groups), placeholder(grad, shape, as_groups=as_groups),
            _of_groups(weight, tasks) if as_groups else weight[0], None,
            *self._arguments(tasks if as_groups else 1), (True, False, False),
        )[0]  # fmt: skip
        return apart(found, 1, shape[1:3]) if as_groups else apart(found, 0, shape[:2])

    def of_weight(self, grad: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        as_groups = shape[0] > 1 or (x.shape[1] > 1 and has_channels_last(x.shape))
        groups = x.shape[1] if as_groups else 1
        found: Tensor = aten.convolution_backward(
            merged(dense(grad, x.shape), as_groups=as_groups), merged(x, as_groups=as_groups),
            grad.new_empty(groups * shape[1], *shape[2:]), None, *self._arguments(groups), (False, True, False),
        )[1]  # fmt: skip
        found = found.contiguous().view(groups, *shape[1:])
        return found.sum(0, keepdim=True) if shape[0] < groups else found

    def of_bias(self, grad: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        each = grad.sum([0, *range(3, grad.dim())])
        return each.sum(0, keepdim=True) if shape[0] == 1 else each


def _is_one(weight: Tensor, shape: Sequence[int]) -> bool:
    """Whether one convolution of all examples, of a shape, is fastest: tasks with their channels last are groups."""
    return is_shared(weight) and (shape[1] == 1 or not has_channels_last(shape))


def _of_groups(weight: Tensor, tasks: int) -> Tensor:
    """Weights `(B, out, ...)`, or `(1, out, ...)` for all tasks, of one convolution with a group for each task."""
    return weight.expand(tasks, *weight.shape[1:]).flatten(0, 1)
