"""Convolutions of many tasks: tasks are groups of one convolution."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.functional.kernels.layout import apart, is_shared, merged, placeholder

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
        if is_shared(weight):
            fused = bias is None or is_shared(bias)
            own = bias[0] if bias is not None and fused else None
            y = aten.convolution(merged(x, as_groups=False), weight[0], own, *self._arguments(1))
            y = apart(y, 0, (n, tasks))
            return y if bias is None or fused else self.shifted(y, bias)
        own = None if bias is None else bias.expand(tasks, -1).flatten().contiguous()
        y = aten.convolution(merged(x, as_groups=True), weight.flatten(0, 1), own, *self._arguments(tasks))
        return apart(y, 1, (tasks, weight.shape[1]))

    def shifted(self, y: Tensor, bias: Tensor) -> Tensor:
        """See `Layer`."""
        return y + bias.reshape(1, *bias.shape, *(1,) * (y.dim() - 3))

    def of_input(self, grad: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        as_groups = not is_shared(weight)
        found: Tensor = aten.convolution_backward(
            merged(grad, as_groups=as_groups), placeholder(grad, shape, as_groups=as_groups),
            weight.flatten(0, 1) if as_groups else weight[0], None,
            *self._arguments(grad.shape[1] if as_groups else 1), (True, False, False),
        )[0]  # fmt: skip
        return apart(found, 1, shape[1:3]) if as_groups else apart(found, 0, shape[:2])

    def of_weight(self, grad: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        as_groups = shape[0] > 1
        found: Tensor = aten.convolution_backward(
            merged(grad, as_groups=as_groups), merged(x, as_groups=as_groups), grad.new_empty(shape).flatten(0, 1),
            None, *self._arguments(shape[0]), (False, True, False),
        )[1]  # fmt: skip
        return found.contiguous().view(shape)

    def of_bias(self, grad: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        each = grad.sum([0, *range(3, grad.dim())])
        return each.sum(0, keepdim=True) if shape[0] == 1 else each
