"""Convolutions of many tasks: tasks are groups of one convolution."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.functional.kernels.layout import apart, empty, is_last, is_shared, merged, placeholder

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

    @cache  # noqa: B019 (what it keeps is small)
    def can_be_rounded(self, sizes: Sequence[int], kernel: Sequence[int]) -> bool:
        """Whether torch's convolutions in bfloat16 are right for it, and not numbers that nobody has computed (2.14.1).

        They are not where an element of the kernel, or of the output, has nothing but zeros of the padding to multiply,
        where one step of more than one gives the whole output, and for some in three dimensions.

        Args:
            sizes: Of the inputs, for each spatial dimension.
            kernel: Its size in each.
        """
        for size, width, step, zeros, gap in zip(sizes, kernel, self.stride, self.padding, self.dilation, strict=True):
            starts = range(0, size + 2 * zeros - gap * (width - 1), step)
            inside = [[zeros <= start + gap * k < zeros + size for k in range(width)] for start in starts]
            meets_padding_alone = not all(map(any, inside)) or not all(map(any, zip(*inside, strict=True)))
            if meets_padding_alone or (len(starts) == 1 and step > 1):
                return False
        return len(sizes) < 3

    def _arguments(self, tasks: int) -> tuple[Any, ...]:
        """The arguments of torch's convolution of so many tasks."""
        return self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), self.groups * tasks

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve inputs with weights `(B, out, channels, ...)`."""
        n, tasks = x.shape[:2]
        bias = None if bias is None else bias.to(x.dtype)
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
        if self._has_small_patches(grad, x, shape):
            return self._of_patches(grad, x, shape)
        as_groups = shape[0] > 1
        found: Tensor = aten.convolution_backward(
            merged(grad, as_groups=as_groups), merged(x, as_groups=as_groups),
            empty(grad, (shape[0] * shape[1], *shape[2:]), grad.shape[1]), None, *self._arguments(shape[0]),
            (False, True, False),
        )[1]  # fmt: skip
        return found.contiguous().view(shape)

    def _has_small_patches(self, grad: Tensor, x: Tensor, shape: Sequence[int]) -> bool:
        """Whether the patches that meet the weights are at most four times the inputs, as in steps of more than one.

        In bfloat16 torch's own gradient takes up to eight times as long then.
        """
        if grad.dtype != torch.bfloat16 or not is_last(x.shape[1], x.dim(), x.dtype) or self.groups > 1:
            return False
        patches = x.shape[2] * math.prod(grad.shape[3:]) * math.prod(shape[3:])
        return x.shape[2] >= 16 and patches <= 4 * math.prod(x.shape[2:])

    def _of_patches(self, grad: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The gradient of the weights as one product of matrices for each task."""
        n, tasks, channels, height, width = x.shape
        top, left = self.padding
        padded = x.new_empty(tasks, n, height + 2 * top, width + 2 * left, channels)
        padded[:, :, top : top + height, left : left + width] = x.permute(1, 0, 3, 4, 2)
        for rows in (slice(top), slice(top + height, None)):
            padded[:, :, rows] = 0
        for columns in (slice(left), slice(left + width, None)):
            padded[:, :, :, columns] = 0
        size = tasks, n, *grad.shape[3:], *shape[3:], channels
        of_task, of_example, of_row, of_column, _ = padded.stride()
        steps = [a * b for a, b in zip(self.stride + self.dilation, (of_row, of_column) * 2, strict=True)]
        patches = padded.as_strided(size, (of_task, of_example, *steps, 1))
        inputs = patches.reshape(shape[0], -1, channels * math.prod(shape[3:]))
        grads = grad.permute(1, 0, 3, 4, 2).reshape(shape[0], -1, shape[1])
        return (grads.mT @ inputs).view(*shape[:2], *shape[3:], channels).permute(0, 1, 4, 2, 3)

    def of_bias(self, grad: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        each = grad.sum([0, *range(3, grad.dim())])
        return each.sum(0, keepdim=True) if shape[0] == 1 else each
