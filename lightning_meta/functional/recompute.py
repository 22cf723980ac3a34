"""Computing the values of a function again in the backward pass, instead of keeping them: gradient checkpointing."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, TypeVar
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_meta.errors import NetworkError
from lightning_meta.functional.kernels import WritesInPlace
from lightning_meta.task import tensors_of

Result = TypeVar("Result")
_KEPT = 2
"""Of so many calls the values that were computed again are kept at a time. The backward pass goes from the last call to
the first; two that follow each other may overlap."""


def recomputed(function: Callable[..., Result], *args: Any) -> Result:
    """Call `function(*args)` so that its intermediate values are computed again when a backward pass needs them.

    While the function runs they are kept, so that it may differentiate what it has computed itself. It draws the same
    random numbers when it is called again, and has to do the same then. Unlike `torch.utils.checkpoint`, a value may be
    asked for several times in one backward pass, as is so where a layer writes in place into a view.

    Paper: Chen, Xu, Zhang, Guestrin 2016, arXiv:1604.06174.

    Args:
        function: Returns any nesting of tensors.
        args: Any nestings of tensors and other values.

    Returns:
        What the function returns.

    Raises:
        NetworkError: In the backward pass, the function has not done the same again.
    """
    try:
        return _recorded(function, args)
    except WritesInPlace:  # it is known now, and will be seen to from the beginning on
        return recomputed(function, *args)


def is_recorded() -> bool:
    """Whether a function is running so that it can be computed again."""
    return _Call.running > 0


def _recorded(function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    call = _Call(function, args)
    _Call.running += 1
    try:
        with saved_tensors_hooks(call.pack, call.unpack):
            result = function(*args)
    finally:
        _Call.running -= 1
    call.forget()
    return result


class _Call:
    """A call, and what its backward pass asks for: `(tensor, version)` for each value in the order of saving."""

    running: ClassVar[int] = 0
    recent: ClassVar[deque["ReferenceType[_Call]"]] = deque()

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function, self.args = function, args
        self.surroundings = _Surroundings([t.device for t in tensors_of(args)])
        self.values: list[tuple[Tensor, int]] | None = []
        self.count = 0

    def pack(self, tensor: Tensor) -> int:
        assert self.values is not None
        self.values.append((tensor.detach(), tensor._version))
        return len(self.values) - 1

    def unpack(self, place: int) -> Tensor:
        if self.values is None:
            self._compute_again()
        assert self.values is not None
        tensor, version = self.values[place]
        if tensor._version != version:
            raise NetworkError(
                "A value that a gradient needs was overwritten in place after it had been computed. Leave out that "
                "in-place operation."
            )
        return tensor

    def forget(self) -> None:
        """The function has returned: from now on values are computed again."""
        assert self.values is not None
        self.count, self.values = len(self.values), None

    def _compute_again(self) -> None:
        again = _Call(self.function, self.args)
        with self.surroundings.again(), torch.enable_grad(), saved_tensors_hooks(again.pack, again.unpack):
            self.function(*self.args)
        assert again.values is not None
        if len(again.values) != self.count:
            raise NetworkError(
                f"An inner step that is computed again has {len(again.values)} intermediate values, but had "
                f"{self.count} at first: the network does something else in each call. Leave out "
                "checkpoint_inner_steps."
            )
        self.values = again.values
        self.recent.append(ref(self))
        while len(self.recent) > _KEPT:
            oldest = self.recent.popleft()()
            if oldest is not None and oldest is not self:
                oldest.values = None


class _Surroundings:
    """The random numbers and the automatic precision with which a function was called."""

    def __init__(self, devices: list[torch.device]) -> None:
        self.gpus = sorted({device.index for device in devices if device.type == "cuda"})
        self.states = torch.get_rng_state(), [torch.cuda.get_rng_state(gpu) for gpu in self.gpus]
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in (["cpu", "cuda"] if self.gpus else ["cpu"])
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within it, everything is as it was."""
        of_cpu, of_gpus = self.states
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(self.gpus))
            torch.set_rng_state(of_cpu)
            for gpu, state in zip(self.gpus, of_gpus, strict=True):
                torch.cuda.set_rng_state(state, gpu)
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled))
            yield
