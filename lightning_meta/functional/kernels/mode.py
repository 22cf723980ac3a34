"""Which of torch's functions a network runs with a kernel of this package."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_meta.functional.kernels.bilinear import Exact, Multiply, multiply_rounded
from lightning_meta.functional.kernels.convolution import Convolution
from lightning_meta.functional.kernels.copies import VIEWS, Copies, in_float32
from lightning_meta.functional.kernels.corrections import CORRECTIONS
from lightning_meta.functional.kernels.isolation import (
    Isolation,
    WritesInPlace,
    storage,
    without_activation_checkpoints,
    written,
)
from lightning_meta.functional.kernels.layout import dense
from lightning_meta.functional.kernels.linear import linear
from lightning_meta.functional.kernels.normalization import BatchNormalization
from lightning_meta.functional.kernels.pooling import MaxPooling, Window
from lightning_meta.functional.kernels.vmap import AVAILABLE, empty_of_each_task, over_all_tasks
from lightning_meta.functional.normalization import masked_batch_norm

# Below so many numbers of a layer, what a kernel saves for a single task is less than calling it costs.
SMALLEST_OF_ONE_TASK = 2**17

# What they return is written into before it is read, and then each task may write something else.
EMPTY = frozenset([torch.empty, torch.empty_like, Tensor.new_empty])


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
    """The zeros on both sides that `"same"` or `"valid"` means; `None` if those of the two sides differ, or no such."""
    around = [d * (size - 1) for size, d in zip(weight.shape[2:], dilation, strict=True)]
    if padding == "valid":
        return (0,) * len(around)
    if padding != "same" or any(step != 1 for step in stride) or any(zeros % 2 for zeros in around):
        return None
    return tuple(zeros // 2 for zeros in around)


def _first(results: list[Tensor] | None) -> Tensor | None:
    return None if results is None else results[0]


def _pair(values: Any, dims: int) -> tuple[int, ...]:
    return (values,) * dims if isinstance(values, int) else tuple(values) * (dims // len(values))


def _conv(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    dims = weight.dim() - 2
    input = input if _is_rounded(input) else _as_multiplied(input, weight)
    stride, dilation = _pair(stride, dims), _pair(dilation, dims)
    padding = _padded(padding, weight, stride, dilation) if isinstance(padding, str) else _pair(padding, dims)
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


def _masked_batch_norm(
    mask: Tensor, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
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
    size = _pair(kernel_size, 2)
    window = Window(size, _pair(stride, 2) if stride else size, _pair(padding, 2), _pair(dilation, 2), ceil_mode)

    def kernel(tensors: list[Any]) -> list[tuple[Tensor, int]]:
        return [(MaxPooling.apply(dense(tensors[0].second), window), 1)]

    return _first(over_all_tasks(kernel, input))


def _adaptive_avg_pool(input: Tensor, output_size: Any) -> Tensor | None:
    """The mean of each image, which torch gives strides that `torch.vmap` has no rule for, if channels are last."""
    if not _is_rounded(input) or input.dim() != 4 or output_size not in (1, (1, 1), [1, 1]):
        return None
    return input.mean((-2, -1), keepdim=True)


_KERNELS: dict[Any, Callable[..., Tensor | None]] = {
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv3d: _conv,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    F.max_pool2d: _max_pool,
}


# What rounded tensors go into as they are; the others get them in float32.
_OF_BFLOAT16 = VIEWS | frozenset([
    F.relu, torch.relu, Tensor.relu, F.leaky_relu, F.avg_pool2d,
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__,
    torch.autograd.grad, Tensor.backward, Tensor.register_hook, Tensor.retain_grad,
])  # fmt: skip

# What writes into a rounded tensor as it would into one in float32, besides activations.
_WRITES_BFLOAT16 = frozenset(
    ["relu_", "add_", "sub_", "mul_", "div_", "__iadd__", "__isub__", "__imul__", "__itruediv__"]
)


def _is_worth_it(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a layer of a single task is to be run by a kernel; under autocast all are, as with many tasks."""
    if torch.is_autocast_enabled("cpu"):
        return True
    size: int = _convolved(*args, **kwargs) if _KERNELS[func] is _conv else args[0].numel()
    return size >= SMALLEST_OF_ONE_TASK


def _convolved(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, *_: Any, **__: Any) -> int:
    """About how many numbers a convolution reads or makes, whichever are more."""
    dims = weight.dim() - 2
    positions = input.numel() // max(math.prod(input.shape[:-dims]) * math.prod(_pair(stride, dims)), 1)
    return max(input.numel(), len(input) * len(weight) * positions)


class task_kernels(TorchFunctionMode):
    """Within it, the layers that take most of the time on a CPU are those of this package.

    They have the values and derivatives of torch's, for all tasks at once and with cheap second derivatives. What they
    are not made for (other precisions and devices, running statistics in evaluation) is left to torch.

    What a network writes meanwhile stays the task's: see `Isolation`.

    Under autocast in bfloat16 a convolution's output is in bfloat16, and stays so in what follows it in many networks
    (normalization, ReLU, pooling): it takes half the memory, and the next convolution would round it the same. Other
    functions get it in float32, for `torch.vmap` knows no autocast. `rounded` says whether there was such an output.

    A network that writes into a copy in float32, or in another order in memory, where torch would have given it a view
    is run again without these (`Isolation.aliases`).

    Args:
        vectorized: Whether it is used within `torch.vmap`. Small layers of one task are left to torch.
        mask: Which of a task's examples there are, `(examples,)`: batch statistics are those of these; all if `None`.
        layers: The network and all of its layers.
        isolation: Undoes what they keep.
        untouchable: Gives the tensors that are not to be written into, parameters and inputs.
    """

    def __init__(
        self, vectorized: bool, mask: Tensor | None = None, layers: Sequence[nn.Module] = (),
        isolation: Isolation | None = None, untouchable: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:  # fmt: skip
        super().__init__()
        self.vectorized = vectorized
        self.mask = mask
        self.layers, self.isolation, self.untouchable = layers, isolation or Isolation(), untouchable
        self.places: set[int] | None = None
        self.copies = Copies(self.isolation)
        self.rounded = False
        self.checkpoints = without_activation_checkpoints()

    def __enter__(self) -> "task_kernels":
        self.isolation.begin(self.layers)
        self.checkpoints.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.checkpoints.__exit__()
        if self.vectorized:  # nobody can use a tensor of torch.vmap afterwards; a single task's may be in the loss
            self.isolation.restore()

    def check_write(self, tensor: Tensor) -> None:
        """Note that a network is about to write into a tensor that is not its own copy."""
        self.copies.check_write(tensor)
        if not self.isolation.writes:
            if self.places is None:
                self.places = {storage(weight) for weight in self.untouchable()}
            if storage(tensor) in self.places:
                self.isolation.writes = True
                raise WritesInPlace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = written(func, args, kwargs)
        if target is not None:
            self.check_write(target)
        if func in VIEWS and args:
            return self.copies.view(func, args, kwargs)
        kernel = None if func is F.batch_norm and self.mask is not None else _KERNELS.get(func)
        if kernel is not None and AVAILABLE and args and (self.vectorized or _is_worth_it(func, args, kwargs)):
            result = kernel(*args, **kwargs)
            if result is not None:
                if self.isolation.aliases:
                    return in_float32(result).contiguous()
                self.rounded = self.rounded or result.dtype == torch.bfloat16
                return result
        if self.rounded and func not in _OF_BFLOAT16:
            args, kwargs = self._of_rounded(func, target, args, kwargs)
        if func in EMPTY and self.vectorized and AVAILABLE:
            return empty_of_each_task(func(*args, **kwargs), self.untouchable)
        if func is F.batch_norm and self.mask is not None:
            normalized = _masked_batch_norm(self.mask, *args, **kwargs)
            return func(*args, **kwargs) if normalized is None else normalized
        if func in CORRECTIONS:
            corrected = CORRECTIONS[func](self, *args, **kwargs)
            return func(*args, **kwargs) if corrected is None else corrected
        return func(*args, **kwargs)

    def _of_rounded(self, func: Any, target: Tensor | None, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a function that is not known to be the same for tensors in bfloat16."""
        name = getattr(func, "__name__", "")
        if target is None and name == "__set__" and args[0].dtype == torch.bfloat16:
            self.copies.run_again()
        if target is not None and target.dtype == torch.bfloat16:
            if name not in _WRITES_BFLOAT16 and kwargs.get("inplace") is not True:
                self.copies.run_again()
            return args, kwargs
        return (args, kwargs) if name == "__get__" else (self.copies.in_float32(args), self.copies.in_float32(kwargs))
