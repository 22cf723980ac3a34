"""The tensors of all tasks behind those of one task that a function sees under `torch.vmap`."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

try:  # not public, but as old as torch.vmap itself
    from torch._C._functorch import (
        _add_batch_dim,
        get_unwrapped,
        is_batchedtensor,
        maybe_current_level,
        maybe_get_bdim,
    )
    from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True


class OfTasks(NamedTuple):
    """A tensor of all tasks, or one that they share.

    Attributes:
        tensor: With the tasks in dimension `dim`; without them if that is `None`.
        dim: Where the tasks are.
        number: How many tasks there are.
    """

    tensor: Tensor
    dim: int | None
    number: int

    @property
    def second(self) -> Tensor:
        """The tensor with the tasks in the second dimension, `(examples, B, ...)`."""
        if self.dim is None:
            return self.tensor.unsqueeze(1).expand(-1, self.number, *self.tensor.shape[1:])
        return self.tensor.movedim(self.dim, 1)

    @property
    def first(self) -> Tensor:
        """The tensor with the tasks in the first dimension, `(B, ...)`; `(1, ...)` if they share it."""
        if self.dim is None:
            return self.tensor.unsqueeze(0)
        return self.tensor if self.dim == 0 else self.tensor.movedim(self.dim, 0)


def over_all_tasks(
    kernel: Callable[[list[OfTasks | None]], list[tuple[Tensor, int]]], *tensors: Tensor | None
) -> list[Tensor] | None:
    """Call `kernel` once for all tasks, from within a function of one.

    Args:
        kernel: Gets the tensors of all tasks; returns results, each with the dimension that the tasks are in.
        tensors: What the function of one task has. Outside of `torch.vmap` this is the only task.

    Returns:
        What the kernel returned, as the function of one task sees it; `None` where another transform of torch is at
        work within `torch.vmap`, and the kernel cannot be used.
    """
    level = maybe_current_level()
    if level is None:
        alone = [None if tensor is None else OfTasks(tensor, None, 1) for tensor in tensors]
        return [result.squeeze(dim) for result, dim in kernel(alone)]
    apart = [
        (tensor, None) if tensor is None or not is_batchedtensor(tensor)
        else (get_unwrapped(tensor), maybe_get_bdim(tensor))
        for tensor in tensors
    ]  # fmt: skip
    counts = [tensor.shape[dim] for tensor, dim in apart if tensor is not None and dim is not None]
    if level > 1 or not counts:
        return None
    together = [None if tensor is None else OfTasks(tensor, dim, counts[0]) for tensor, dim in apart]
    with temporarily_pop_interpreter_stack():
        results = kernel(together)
    return [_add_batch_dim(result, dim, level) for result, dim in results]


def empty_of_each_task(tensor: Tensor, others: Callable[[], Iterable[Tensor]]) -> Tensor:
    """One such tensor for each task, of which the function of one sees its own; itself where there is one already.

    Args:
        tensor: Not initialized.
        others: Gives tensors of which one is of all tasks at least.
    """
    level = maybe_current_level()
    if level != 1 or is_batchedtensor(tensor):
        return tensor
    of_all = (other for other in others() if is_batchedtensor(other))
    count = next((get_unwrapped(other).shape[maybe_get_bdim(other)] for other in of_all), None)
    if count is None:
        return tensor
    with temporarily_pop_interpreter_stack():
        own = tensor.new_empty((count, *tensor.shape))
    found: Tensor = _add_batch_dim(own, 0, level)
    return found


def plain(tensor: Tensor) -> Tensor:
    """The tensor in memory that is behind one that a function sees under `torch.vmap`."""
    while AVAILABLE and is_batchedtensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor
