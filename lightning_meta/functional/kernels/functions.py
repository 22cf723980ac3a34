"""Functions of torch, with the arguments that they have there, run by the kernels of this package."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_meta.functional.kernels.bilinear import Exact, Multiply, multiply_rounded
from lightning_meta.functional.kernels.convolution import Convolution
from lightning_meta.functional.kernels.layout import dense
from lightning_meta.functional.kernels.linear import linear
from lightning_meta.functional.kernels.normalization import BatchNormalization
from lightning_meta.functional.kernels.pooling import MaxPooling, Window
from lightning_meta.functional.kernels.vmap import over_all_tasks
from lightning_meta.functional.normalization import masked_batch_norm


def rounds() -> bool:
    """Whether autocast asks for products in bfloat16."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _is_rounded(input: Tensor) -> bool:
    """Whether it is what a kernel has made in bfloat16, as autocast asks for."""
    return input.dtype == torch.bfloat16 and rounds()


def _fits(input: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels are for these tensors: on a CPU, in one precision, or float32 weights of what is rounded."""
    dtype = torch.float32 if _is_rounded(input) else input.dtype
    return (
        input.device.type == "cpu"
        and dtype in (torch.float32, torch.float64)
        and all(t is None or t.dtype == dtype for t in others)
    )


def _multiplies(input: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels that multiply are for these tensors: autocast may ask for bfloat16, of float32."""
    allowed = not torch.is_autocast_enabled("cpu") or (rounds() and input.dtype in (torch.float32, torch.bfloat16))
    return allowed and _fits(input, *others)


def _as_multiplied(input: Tensor, weight: Tensor) -> Tensor:
    """What a layer before has rounded in 16 bits, in the type of the weights, where autocast lets the two meet."""
    return input.to(weight.dtype) if rounds() and input.dtype in (torch.bfloat16, torch.float16) else input


def _padded(padding: str, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...] | None:
    """The zeros on both sides that `"same"` or `"valid"` means, or `None` where torch is to say."""
    around = [d * (size - 1) for size, d in zip(weight.shape[2:], dilation, strict=True)]
    if padding == "valid":
        return (0,) * len(around)
    if padding != "same" or any(step != 1 for step in stride) or any(zeros % 2 for zeros in around):
        return None
    return tuple(zeros // 2 for zeros in around)


def _first(results: list[Tensor] | None) -> Tensor | None:
    return None if results is None else results[0]


def pair(values: Any, dims: int) -> tuple[int, ...]:
    """A number for each dimension, of one for all or of one each."""
    return (values,) * dims if isinstance(values, int) else tuple(values) * (dims // len(values))


def conv(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    """A convolution of one task, or `None` where torch is to do it."""
    dims = weight.dim() - 2
    input = input if _is_rounded(input) else _as_multiplied(input, weight)
    stride, dilation = pair(stride, dims), pair(dilation, dims)
    padding = _padded(padding, weight, stride, dilation) if isinstance(padding, str) else pair(padding, dims)
    if input.dim() != weight.dim() or padding is None or not _multiplies(input, weight, bias):
        return None
    layer = Convolution(stride, padding, dilation, groups)
    is_autocast = rounds()
    is_rounding = is_autocast and layer.can_be_rounded(input.shape[2:], weight.shape[2:])

    def kernel(tensors: list[Any]) -> list[tuple[Tensor, int]]:
        x, weights, biases = tensors
        inputs, own = x.second, (weights.first, None if biases is None else biases.first)
        if is_rounding:
            return [(multiply_rounded(dense(inputs.bfloat16()), *own, layer), 1)]
        exact = Exact(layer) if is_autocast else layer
        return [(Multiply.apply(dense(inputs.to(own[0].dtype)), *own, exact), 1)]

    return _first(over_all_tasks(kernel, input, weight, bias))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    input, is_rounding = _as_multiplied(input, weight), rounds()
    if input.dim() < 2 or weight.dim() != 2 or not _multiplies(input, weight, bias):
        return None

    def kernel(tensors: list[Any]) -> list[tuple[Tensor, int]]:
        return [linear(*tensors, rounds=is_rounding)]

    return _first(over_all_tasks(kernel, input, weight, bias))


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    count = input.numel() // max(input.shape[1], 1) if input.dim() > 1 else 0
    if not training or weight is None or bias is None or count < 2 or not _fits(input, weight, bias):
        return None

    def kernel(tensors: list[Any]) -> list[tuple[Tensor, int]]:
        x, weights, biases = tensors
        return list(
            zip(BatchNormalization.apply(dense(x.second), weights.first, biases.first, eps), (1, 0, 0), strict=True)
        )

    results = over_all_tasks(kernel, input, weight, bias)
    if results is None:
        return None
    y, mean, r = results
    if running_mean is not None and running_var is not None:
        _update_running(running_mean, running_var, mean, (r**-2 - eps) * (count / (count - 1)), momentum)
    return y


def masked_batch_norm_of_task(
    mask: Tensor, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    """Normalization with the statistics of the examples that there are; `None` where it has stored ones."""
    if not training:
        return None
    y, mean, var = masked_batch_norm(input, mask, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        count = mask.sum() * (input[:, 0].numel() // len(input))
        _update_running(running_mean, running_var, mean, var * (count / (count - 1)), momentum)
    return y


def _update_running(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float) -> None:
    running_mean.mul_(1 - momentum).add_(mean.detach() * momentum)
    running_var.mul_(1 - momentum).add_(var.detach() * momentum)


def _max_pool(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:  # fmt: skip
    if return_indices or input.dim() != 4 or not _fits(input):
        return None
    size = pair(kernel_size, 2)
    window = Window(size, pair(stride, 2) if stride else size, pair(padding, 2), pair(dilation, 2), ceil_mode)

    def kernel(tensors: list[Any]) -> list[tuple[Tensor, int]]:
        return [(MaxPooling.apply(dense(tensors[0].second), window), 1)]

    return _first(over_all_tasks(kernel, input))


def _adaptive_avg_pool(input: Tensor, output_size: Any) -> Tensor | None:
    """The mean of each image, which torch gives strides that `torch.vmap` has no rule for, if channels are last."""
    if not _is_rounded(input) or input.dim() != 4 or output_size not in (1, (1, 1), [1, 1]):
        return None
    return input.mean((-2, -1), keepdim=True)


KERNELS: dict[Any, Callable[..., Tensor | None]] = {
    F.conv1d: conv,
    F.conv2d: conv,
    F.conv3d: conv,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    F.max_pool2d: _max_pool,
}
