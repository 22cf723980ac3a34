"""Copies where a network may expect views: in float32, of what is rounded, or in another order in memory."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from lightning_meta.functional.kernels.isolation import Isolation, WritesInPlace, storage

# Views in torch; of tensors with channels last in memory they may be copies.
_OF_SHAPE = frozenset([Tensor.view, Tensor.view_as])
VIEWS = _OF_SHAPE | frozenset([Tensor.flatten, torch.flatten, Tensor.reshape, torch.reshape, Tensor.contiguous])


def in_float32(tensor: Tensor) -> Tensor:
    """It, or what a kernel has rounded in float32."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


class Copies:
    """The copies that one run of a network was given; a write into one of these would be lost.

    Args:
        isolation: Is told of such a write, so that the network runs again without them.
    """

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._copies: list[Tensor] = []

    def in_float32(self, values: Any) -> Any:
        """Arguments of a function of torch, with the tensors in float32."""
        if isinstance(values, Tensor):
            found = in_float32(values)
            if found is not values:
                self._copies.append(found)
            return found
        if type(values) in (tuple, list):
            return type(values)(map(self.in_float32, values))
        if type(values) is dict:
            return {name: self.in_float32(value) for name, value in values.items()}
        return values

    def view(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """What one of `VIEWS` returns: a view if it can be one, else a copy."""
        if self._isolation.aliases:
            return func(*args, **kwargs)  # type: ignore[no-any-return]
        if func in _OF_SHAPE and not isinstance(args[-1], torch.dtype) and not kwargs:
            found: Tensor = args[0].reshape(args[1].shape) if func is Tensor.view_as else args[0].reshape(*args[1:])
        else:
            found = func(*args, **kwargs)
        if storage(found) != storage(args[0]):
            self._copies.append(found)
        return found

    def check_write(self, tensor: Tensor) -> None:
        """To be called before a network writes into a tensor."""
        if self._copies and storage(tensor) in map(storage, self._copies):
            self.run_again()

    def run_again(self) -> NoReturn:
        """Have the network run again without copies."""
        self._isolation.aliases = True
        raise WritesInPlace
