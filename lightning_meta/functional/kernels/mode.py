"""The mode in which a network runs with the kernels of this package."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_meta.functional.kernels.copies import VIEWS, Copies, in_float32
from lightning_meta.functional.kernels.corrections import CORRECTIONS
from lightning_meta.functional.kernels.functions import KERNELS, conv, masked_batch_norm_of_task, pair
from lightning_meta.functional.kernels.isolation import (
    Isolation,
    WritesInPlace,
    storage,
    without_activation_checkpoints,
    written,
)
from lightning_meta.functional.kernels.vmap import AVAILABLE, empty_of_each_task

# Below so many numbers of a layer, what a kernel saves for a single task is less than calling it costs.
SMALLEST_OF_ONE_TASK = 2**17

# What they return is written into before it is read, and then each task may write something else.
EMPTY = frozenset([torch.empty, torch.empty_like, Tensor.new_empty])


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
    size: int = _convolved(*args, **kwargs) if KERNELS[func] is conv else args[0].numel()
    return size >= SMALLEST_OF_ONE_TASK


def _convolved(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, *_: Any, **__: Any) -> int:
    """About how many numbers a convolution reads or makes, whichever are more."""
    dims = weight.dim() - 2
    positions = input.numel() // max(math.prod(input.shape[:-dims]) * math.prod(pair(stride, dims)), 1)
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
        kernel = None if func is F.batch_norm and self.mask is not None else KERNELS.get(func)
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
            normalized = masked_batch_norm_of_task(self.mask, *args, **kwargs)
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
