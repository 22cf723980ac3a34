"""Batch normalization of many tasks: tasks are channels of one normalization."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lightning_meta.functional.kernels.layout import apart, dense

aten = torch.ops.aten


class BatchNormalization(Function):
    r"""Each task's inputs, normalized with their own statistics, scaled and shifted.

    .. math:: y = \gamma \hat x + \beta, \qquad \hat x = (x - \mu)\,r, \qquad r = (\sigma^2 + \epsilon)^{-1/2}
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize `x` `(n, B, channels, ...)`; the mean and r, `(B, channels)`, are not differentiable."""
        y, mean, r = aten.native_batch_norm(
            dense(x).flatten(1, 2), _each(weight, x), _each(bias, x), None, None, True, 0.0, eps
        )
        y, mean, r = apart(y, 1, x.shape[1:3]), mean.view(x.shape[1:3]), r.view(x.shape[1:3])
        ctx.save_for_backward(x, weight, mean, r)
        ctx.eps, ctx.bias_count = eps, len(bias)
        ctx.mark_non_differentiable(mean, r)
        ctx.set_materialize_grads(False)
        return y, mean, r

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        """The gradients of the inputs, the scales and the shifts."""
        if grad is None:
            return None, None, None, None
        x, weight, mean, r = ctx.saved_tensors
        of_x, of_weight, of_bias = OfNormalization.apply(dense(grad), x, weight, mean, r, ctx.eps)
        counts = len(weight), ctx.bias_count
        return of_x, *(_added_up(t, count) for t, count in zip((of_weight, of_bias), counts, strict=True)), None


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
        shape = x.shape
        gamma, mean, r = _each(weight, x), mean.flatten(), r.flatten()
        x, grad = (t.flatten(1, 2).to(mean.dtype) for t in (x, grad))  # from bfloat16, if they are in that
        m = x.numel() // x.shape[1]
        g_xhat, g_mean = of_weight / m, of_bias / m
        none = torch.zeros_like(mean)
        v, w = (none if t is None else t.flatten() for t in (v, w))
        if u is None:
            factor, of_xhat, of_gamma = r * v, -r * v * g_xhat, None
            of_x = _times(grad, factor).add_(_column(-factor * g_mean - of_xhat * mean * r, x))
            of_grad = _times(x, v * r).add_(_column(w - v * mean * r, x))
        else:
            u = dense(u).flatten(1, 2).to(mean.dtype)
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
            of_gamma = _added_up((r * m * k).view(shape[1:3]), len(weight))
        of_x.addcmul_(x, _column(of_xhat * r, x))
        return of_grad.view(shape), of_x.view(shape), of_gamma, None, None, None


def _each(values: Tensor, x: Tensor) -> Tensor:
    """Values `(B, channels)`, or `(1, channels)` for all tasks, for each of the merged channels of `x`.

    In memory of their own: torch's kernels read one number after another, whatever the strides say.
    """
    return values.expand(x.shape[1], -1).flatten().contiguous()


def _added_up(values: Tensor, count: int) -> Tensor:
    """Values of every task `(B, channels)`, added up if there is one for all."""
    return values.sum(0, keepdim=True) if count == 1 < len(values) else values


def _column(values: Tensor, x: Tensor) -> Tensor:
    """A number for every channel of `x`, to multiply with."""
    return values.view(-1, *(1,) * (x.dim() - 2))


def _times(x: Tensor, values: Tensor) -> Tensor:
    return x * _column(values, x)
