"""Layers that multiply inputs by weights, of many tasks at once."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from lightning_meta.functional.kernels.layout import dense, dense_weight


class Layer(Protocol):
    """A bilinear function of inputs `(examples, B, channels, ...)` and weights `(B, out, channels, ...)`.

    There may be one weight `(1, ...)` for all tasks.
    """

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output `(examples, B, out, ...)`; biases are `(B, out)` or `(1, out)`."""
        ...

    def shifted(self, y: Tensor, bias: Tensor) -> Tensor:
        """The output with biases added to it."""
        ...

    def of_input(self, grad: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """The output's gradient, carried over to the input, of which the shape is given."""
        ...

    def of_weight(self, grad: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The output's gradient, carried over to the weights; for one weight the tasks' gradients are added up."""
        ...

    def of_bias(self, grad: Tensor, shape: Sequence[int]) -> Tensor:
        """The output's gradient, carried over to the biases."""
        ...


class Exact:
    """A layer that autocast does not round, nor its gradients, which are taken where autocast is on.

    Args:
        layer: What is computed.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Layer`."""
        with torch.autocast("cpu", enabled=False):
            return self.layer.forward(x, weight, bias)

    def shifted(self, y: Tensor, bias: Tensor) -> Tensor:
        """See `Layer`."""
        return self.layer.shifted(y, bias)

    def of_input(self, grad: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        with torch.autocast("cpu", enabled=False):
            return self.layer.of_input(grad, weight, shape)

    def of_weight(self, grad: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        with torch.autocast("cpu", enabled=False):
            return self.layer.of_weight(grad, x, shape)

    def of_bias(self, grad: Tensor, shape: Sequence[int]) -> Tensor:
        """See `Layer`."""
        return self.layer.of_bias(grad, shape)


class Multiply(Function):
    """A bilinear layer.

    It, its gradient in the input and its gradient in the weights are bilinear, and the derivatives of each are the
    other two: so any derivative is one of these again, of all tasks at once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
        """Apply the layer."""
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.bias_shape = layer, None if bias is None else bias.shape
        return layer.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of the inputs, the weights and the biases."""
        x, weight = ctx.saved_tensors
        grad, needs = dense(grad), ctx.needs_input_grad
        return (
            OfInput.apply(grad, weight, x.shape, ctx.layer) if needs[0] else None,
            OfWeight.apply(grad, x, weight.shape, ctx.layer) if needs[1] else None,
            ctx.layer.of_bias(grad, ctx.bias_shape) if needs[2] else None,
            None,
        )


class OfInput(Function):
    """The gradient of a bilinear layer in its input."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, shape: Sequence[int], layer: Layer) -> Tensor:
        """Of the output's gradient and the weights."""
        ctx.save_for_backward(grad, weight)
        ctx.layer = layer
        return layer.of_input(grad, weight, shape)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        """The derivatives in the output's gradient and in the weights."""
        (grad, weight), needs = ctx.saved_tensors, ctx.needs_input_grad
        direction = dense(direction)
        return (
            Multiply.apply(direction, weight, None, ctx.layer) if needs[0] else None,
            OfWeight.apply(grad, direction, weight.shape, ctx.layer) if needs[1] else None,
            None,
            None,
        )


class OfWeight(Function):
    """The gradient of a bilinear layer in its weights."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, shape: Sequence[int], layer: Layer) -> Tensor:
        """Of the output's gradient and the inputs."""
        ctx.save_for_backward(grad, x)
        ctx.layer = layer
        return layer.of_weight(grad, x, shape)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        """The derivatives in the output's gradient and in the inputs."""
        (grad, x), needs = ctx.saved_tensors, ctx.needs_input_grad
        direction = dense_weight(direction, direction.dtype)
        return (
            Multiply.apply(x, direction, None, ctx.layer) if needs[0] else None,
            OfInput.apply(grad, direction, x.shape, ctx.layer) if needs[1] else None,
            None,
            None,
        )


class Rounded(Function):
    """Weights of all tasks in bfloat16; those that are copies of one stay so."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """Round `(B, ...)`."""
        return dense_weight(weight, torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """As it is, in float32."""
        return torch.empty(grad.shape, dtype=torch.float32).copy_(grad)


def multiply_rounded(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
    """A bilinear layer of inputs in bfloat16, of which the products and the output are so; sums are in float32.

    It takes half the time of float32 on processors that multiply bfloat16 (AVX512-BF16, AMX).
    """
    y: Tensor = Multiply.apply(x, Rounded.apply(weight), bias, layer)
    return y
