"""Convolution and batch normalization of many tasks at once, with cheap first and second derivatives.

A network calls torch's own functions; `task_kernels` puts these in their place. Tensors have the tasks in their second
dimension, `(examples, B, channels, ...)`: so tasks become groups of a convolution and channels of a normalization
without a copy, and weights that all tasks still share (in the first inner step) are one ordinary convolution.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class Geometry(NamedTuple):
    """How a convolution goes over its input; tuples have an entry for each spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def arguments(self, tasks: int) -> tuple[Any, ...]:
        """The arguments of torch's convolution of so many tasks."""
        return self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), self.groups * tasks


def _dense(x: Tensor) -> Tensor:
    """`(examples, B, channels, ...)` without gaps, in the order that torch is fastest in: for one task channels last."""
    if x.shape[1] == 1 and x.dim() == 5:
        return x.squeeze(1).contiguous(memory_format=torch.channels_last).unsqueeze(1)
    return x.contiguous()


def _images(x: Tensor) -> Tensor:
    """`(examples, 1, channels, ...)` of one task, without the task dimension and known to have the channels last."""
    x = _dense(x).squeeze(1)
    if x.dim() == 4 and x.shape[1] == 1:  # torch takes one channel for channels first, unless strides say otherwise
        x = x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x


def _together(x: Tensor, *, as_groups: bool) -> Tensor:
    """`(examples, B, channels, ...)` as one batch of images, with the tasks among the examples or the channels."""
    return _images(x) if x.shape[1] == 1 else x.flatten(1, 2) if as_groups else x.flatten(0, 1)


def _placeholder(like: Tensor, shape: Sequence[int], *, as_groups: bool) -> Tensor:
    """A tensor of which torch reads the shape only."""
    if shape[1] == 1 and len(shape) == 5:
        size = (shape[0], *shape[2:])
        return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return _together(like.new_empty(shape), as_groups=as_groups)


def _is_shared(weight: Tensor) -> bool:
    """Whether all tasks have the same weights: there is one for all, or copies that are views of one."""
    return weight.shape[0] == 1 or weight.stride(0) == 0


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    n, tasks = x.shape[:2]
    if _is_shared(weight):
        fused = bias is None or _is_shared(bias)
        own = bias[0] if bias is not None and fused else None
        y = aten.convolution(_together(x, as_groups=False), weight[0], own, *geometry.arguments(1))
        y = y.unflatten(0, (n, tasks))
        return y if bias is None or fused else y + bias.reshape(1, *bias.shape, *(1,) * (y.dim() - 3))
    own = None if bias is None else bias.expand(tasks, -1).flatten()
    y = aten.convolution(_together(x, as_groups=True), weight.flatten(0, 1), own, *geometry.arguments(tasks))
    return y.unflatten(1, (tasks, weight.shape[1]))


def _of_input(grad: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    """The gradient of a convolution in its input, of which only the shape matters."""
    as_groups = not _is_shared(weight)
    found: Tensor = aten.convolution_backward(
        _together(grad, as_groups=as_groups), _placeholder(grad, shape, as_groups=as_groups),
        weight.flatten(0, 1) if as_groups else weight[0], None,
        *geometry.arguments(grad.shape[1] if as_groups else 1), (True, False, False),
    )[0]  # fmt: skip
    return found.unflatten(*((1, shape[1:3]) if as_groups else (0, shape[:2])))


def _of_weight(grad: Tensor, x: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    """The gradient of a convolution in its weights, of which only the shape matters; one for all tasks adds them up."""
    as_groups = shape[0] > 1
    weight = grad.new_empty(shape)
    found: Tensor = aten.convolution_backward(
        _together(grad, as_groups=as_groups), _together(x, as_groups=as_groups), weight.flatten(0, 1), None,
        *geometry.arguments(shape[0]), (False, True, False),
    )[1]  # fmt: skip
    return found.contiguous().view(shape)


def _tasks_second(tensor: Tensor, dim: int | None, tasks: int) -> Tensor:
    """`(examples, 1, ...)` with tasks in dimension `dim` as `(examples, tasks, ...)`."""
    if dim is None:
        return tensor.expand(tensor.shape[0], tasks, *tensor.shape[2:])
    return tensor.movedim(dim, 1).flatten(1, 2)


def _tasks_first(tensor: Tensor, dim: int | None) -> Tensor:
    """`(1, ...)` with tasks in dimension `dim` as `(tasks, ...)`; as it is, where all tasks share it."""
    return tensor if dim is None else tensor.movedim(dim, 0).flatten(0, 1)


class Convolution(Function):
    """A convolution of each task's inputs with its weights.

    It, its gradient in the input and its gradient in the weights are bilinear, and the derivatives of each are the
    other two: so any derivative is a convolution again, of all tasks at once.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Convolve `x` `(n, B, channels, ...)` with weights `(B, out, channels, ...)` and biases `(B, out)`."""
        return _convolve(x, weight, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Keep what derivatives need."""
        x, weight, bias, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_is_shared = bias is not None and len(bias) == 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradients of the inputs, the weights and the biases."""
        x, weight = ctx.saved_tensors
        grad, needs = _dense(grad), ctx.needs_input_grad
        dims = [0, *range(3, grad.dim())]
        return (
            OfInput.apply(grad, weight, x.shape, ctx.geometry) if needs[0] else None,
            OfWeight.apply(grad, x, weight.shape, ctx.geometry) if needs[1] else None,
            (grad.sum([*dims, 1]).unsqueeze(0) if ctx.bias_is_shared else grad.sum(dims)) if needs[2] else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Any:
        """Run all tasks together."""
        x = _dense(_tasks_second(x, dims[0], info.batch_size))
        bias = None if bias is None else _tasks_first(bias, dims[2])
        return Convolution.apply(x, _tasks_first(weight, dims[1]), bias, geometry).unsqueeze(2), 1


class OfInput(Function):
    """The gradient of a convolution in its input, `(n, B, channels, ...)`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
        """Of the output's gradient and the weights."""
        ctx.save_for_backward(grad, weight)
        ctx.geometry = geometry
        return _of_input(grad, weight, shape, geometry)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        """The derivatives in the output's gradient and in the weights."""
        (grad, weight), needs = ctx.saved_tensors, ctx.needs_input_grad
        direction = _dense(direction)
        return (
            Convolution.apply(direction, weight, None, ctx.geometry) if needs[0] else None,
            OfWeight.apply(grad, direction, weight.shape, ctx.geometry) if needs[1] else None,
            None,
            None,
        )


class OfWeight(Function):
    """The gradient of a convolution in its weights, `(B, out, channels, ...)`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
        """Of the output's gradient and the inputs."""
        ctx.save_for_backward(grad, x)
        ctx.geometry = geometry
        return _of_weight(grad, x, shape, geometry)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        """The derivatives in the output's gradient and in the inputs."""
        (grad, x), needs = ctx.saved_tensors, ctx.needs_input_grad
        direction = _dense(direction)
        return (
            Convolution.apply(x, direction, None, ctx.geometry) if needs[0] else None,
            OfInput.apply(grad, direction, x.shape, ctx.geometry) if needs[1] else None,
            None,
            None,
        )


class BatchNormalization(Function):
    r"""Each task's inputs, normalized with their own statistics, scaled and shifted.

    .. math:: y = \gamma \hat x + \beta, \qquad \hat x = (x - \mu)\,r, \qquad r = (\sigma^2 + \epsilon)^{-1/2}
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize `x` `(n, B, channels, ...)`; the mean and r, `(B, channels)`, are not differentiable."""
        y, mean, r = aten.native_batch_norm(
            _dense(x).flatten(1, 2), _each(weight, x), _each(bias, x), None, None, True, 0.0, eps
        )
        return y.view(x.shape), mean.view(x.shape[1:3]), r.view(x.shape[1:3])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what derivatives need."""
        x, weight, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        """The gradients of the inputs, the scales and the shifts."""
        x, weight, mean, r = ctx.saved_tensors
        of_x, of_weight, of_bias = OfNormalization.apply(_dense(grad), x, weight, mean, r, ctx.eps)
        if len(weight) == 1 < x.shape[1]:
            of_weight, of_bias = of_weight.sum(0, keepdim=True), of_bias.sum(0, keepdim=True)
        return of_x, of_weight, of_bias, None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        """Run all tasks together."""
        x = _dense(_tasks_second(x, dims[0], info.batch_size))
        weight, bias = _tasks_first(weight, dims[1]), _tasks_first(bias, dims[2])
        y, mean, r = BatchNormalization.apply(x, weight, bias, eps)
        return (y.unsqueeze(2), mean.unsqueeze(1), r.unsqueeze(1)), (1, 0, 0)


class OfNormalization(Function):
    r"""The gradient of a batch normalization.

    With :math:`\langle\cdot\rangle` the mean over what is normalized together and :math:`P(a) = a - \langle a\rangle -
    \hat x \langle a \hat x\rangle`, it is :math:`\gamma r P(g)` in the input, :math:`\sum g \hat x` in the scale and
    :math:`\sum g` in the shift.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the output's gradient and what was normalized; scales' and shifts' gradients are `(B, channels)`."""
        of_x, of_weight, of_bias = aten.native_batch_norm_backward(
            grad.flatten(1, 2), x.flatten(1, 2), _each(weight, x), None, None, mean.flatten(), r.flatten(), True, eps,
            (True, True, True),
        )  # fmt: skip
        ctx.save_for_backward(grad, x, weight, mean, r, of_weight, of_bias)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return of_x.view(x.shape), of_weight.view(mean.shape), of_bias.view(mean.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None, w: Tensor | None) -> Any:
        r"""The derivative along directions u of the input's gradient, v of the scale's and w of the shift's.

        .. math::
            \partial_g &= \gamma r P(u) + v \hat x + w, \qquad \partial_\gamma = r m K, \qquad
                K = \langle g u\rangle - \langle g\rangle\langle u\rangle
                    - \langle g \hat x\rangle\langle u \hat x\rangle \\
            \partial_x &= r (v - \gamma r \langle u \hat x\rangle) P(g) - \gamma r^2 \langle g \hat x\rangle P(u)
                - \gamma r^2 K \hat x

        for m values normalized together. Written with x itself these are sums of tensors at hand, each times a number
        for every channel.
        """
        grad, x, weight, mean, r, of_weight, of_bias = ctx.saved_tensors
        shape, shared = x.shape, len(weight) == 1
        gamma, mean, r = _each(weight, x), mean.flatten(), r.flatten()
        x, grad = x.flatten(1, 2), grad.flatten(1, 2)
        m = x.numel() // x.shape[1]
        g_xhat, g_mean = of_weight / m, of_bias / m
        none = torch.zeros_like(mean)
        v, w = (none if t is None else t.flatten() for t in (v, w))
        if u is None:
            factor, of_xhat, of_gamma = r * v, -r * v * g_xhat, None
            of_x = _times(grad, factor).add_(_column(-factor * g_mean - of_xhat * mean * r, x))
            of_grad = _times(x, v * r).add_(_column(w - v * mean * r, x))
        else:
            u = _dense(u).flatten(1, 2)
            arguments = (True, ctx.eps)
            gamma_r_pu, u_xhat, u_sum = aten.native_batch_norm_backward(
                u, x, gamma, None, None, mean, r, *arguments, (True, True, True)
            )
            # With mean 0 and r 1 the gradient of the scale is the plain sum of g u.
            g_u = aten.native_batch_norm_backward(
                u, grad, gamma, None, None, none, torch.ones_like(r), *arguments, (False, True, False)
            )[1]
            u_xhat, u_mean = u_xhat / m, u_sum / m
            k = g_u / m - g_mean * u_mean - g_xhat * u_xhat
            factor = r * (v - gamma * r * u_xhat)
            of_xhat = -factor * g_xhat - gamma * r.square() * k
            of_x = _times(grad, factor).addcmul_(gamma_r_pu, _column(-r * g_xhat, x))
            of_x.add_(_column(-factor * g_mean - of_xhat * mean * r, x))
            of_grad = gamma_r_pu.addcmul_(x, _column(v * r, x)).add_(_column(w - v * mean * r, x))
            of_gamma = (r * m * k).view(shape[1:3])
            of_gamma = of_gamma.sum(0, keepdim=True) if shared else of_gamma
        of_x.addcmul_(x, _column(of_xhat * r, x))
        return of_grad.view(shape), of_x.view(shape), of_gamma, None, None, None


def _each(values: Tensor, x: Tensor) -> Tensor:
    """Values `(B, channels)`, or `(1, channels)` for all tasks, for each of the merged channels of `x`."""
    return values.expand(x.shape[1], -1).flatten()


def _column(values: Tensor, x: Tensor) -> Tensor:
    """A number for every channel of `x`, to multiply with."""
    return values.view(-1, *(1,) * (x.dim() - 2))


def _times(x: Tensor, values: Tensor) -> Tensor:
    return x * _column(values, x)


def _conv(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    dims = weight.dim() - 2
    if input.dim() != weight.dim() or isinstance(padding, str) or not _fits(input, weight, bias):
        return None
    each = [(n,) * dims if isinstance(n, int) else tuple(n) * (dims // len(n)) for n in (stride, padding, dilation)]
    geometry = Geometry(*each, groups)
    bias = None if bias is None else bias.unsqueeze(0)
    result: Tensor = Convolution.apply(input.unsqueeze(1), weight.unsqueeze(0), bias, geometry)
    return result.squeeze(1)


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    count = input.numel() // max(input.shape[1], 1) if input.dim() > 1 else 0
    if not training or weight is None or bias is None or count < 2 or not _fits(input, weight, bias):
        return None
    y, mean, r = BatchNormalization.apply(input.unsqueeze(1), weight.unsqueeze(0), bias.unsqueeze(0), eps)
    if running_mean is not None and running_var is not None:
        var = (r.squeeze(0) ** -2 - eps) * (count / (count - 1))
        running_mean.mul_(1 - momentum).add_(mean.squeeze(0) * momentum)
        running_var.mul_(1 - momentum).add_(var * momentum)
    result: Tensor = y.squeeze(1)
    return result


def _fits(input: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels are for these tensors: on a CPU, in one precision, without autocast."""
    return (
        input.device.type == "cpu"
        and input.dtype in (torch.float32, torch.float64)
        and all(t is None or t.dtype == input.dtype for t in others)
        and not torch.is_autocast_enabled("cpu")
    )


_KERNELS = {F.conv1d: _conv, F.conv2d: _conv, F.conv3d: _conv, F.batch_norm: _batch_norm}


class task_kernels(TorchFunctionMode):
    """Within it, convolutions and batch normalizations on a CPU are those of this file.

    They have the values and derivatives of torch's. What they are not made for (other precisions and devices, autocast,
    running statistics in evaluation) is left to torch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kernel = _KERNELS.get(func)
        if kernel is not None:
            result = kernel(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)
