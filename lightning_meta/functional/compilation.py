"""A function together with its derivatives of any order as one compiled program."""

import random
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from lightning_meta.errors import NetworkError, first_line
from lightning_meta.task import map_tensors, tensors_of

Flat = Callable[[list[Tensor]], Any]

MOST_VERSIONS = 8
"""How many programs are compiled for one function because Python values have changed."""

LEAVES_TORCH = frozenset(["tolist", "numpy", "__array__", "__dlpack__"])
"""Functions whose results a record would keep as they are."""


class CompiledFunction:
    """Runs functions of tensors by `torch.compile`, inner gradients and all.

    The first call with tensors of some shapes runs the function, records the operations that this comes to, those of
    its gradients among them, and compiles the record; later ones run that. What the function does besides, and what it
    decides by anything but its tensors, is not repeated: so `key` and `values` have to name whatever it depends on.
    Where something cannot be recorded or compiled it runs as it is, and a warning says why.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why nothing is compiled, if that has failed."""
        self._programs: dict[Hashable, tuple[Callable[..., Any], Any]] = {}
        self._versions: Counter[Hashable] = Counter()

    def __call__(
        self, function: Flat, tensors: Sequence[Tensor], key: Hashable, values: Callable[[], Hashable] = tuple
    ) -> Any:
        """Call `function(list of tensors)`.

        Args:
            function: Returns any nesting of tensors. No gradient is taken of them outside.
            tensors: Its arguments.
            key: What else it depends on.
            values: Returns the Python values that it runs with, which may change: see `python_values`.

        Returns:
            What the function returns.
        """
        if self.reason is not None:
            return function(list(tensors))
        device = tensors[0].device.type
        shapes = tuple((t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors)
        key = (key, shapes, device, torch.is_autocast_enabled(device), torch.get_num_threads())
        whole = key, values()
        try:
            if whole not in self._programs:
                if self._versions[key] == MOST_VERSIONS:
                    raise NetworkError(
                        f"Python values of the network, its loss or its hooks were others in {MOST_VERSIONS} outer "
                        "steps, and each needs a program of its own; keep what changes in a buffer"
                    )
                self._versions[key] += 1
                self._programs[whole] = self._compiled(function, list(tensors), values)
            program, form = self._programs[whole]
            with torch.no_grad():
                results = self._run(program, tensors, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.reason = first_line(error)
            warnings.warn(f"compile=True: running without, since compiling failed: {self.reason}", stacklevel=3)
            return function(list(tensors))
        ready = iter(results)
        return map_tensors(lambda _: next(ready), form)

    def _compiled(
        self, function: Flat, tensors: list[Tensor], values: Callable[[], Hashable]
    ) -> tuple[Callable[..., Any], Any]:
        """The program, which returns a flat list, and a nesting of tensors in the form of the function's result."""
        devices = [tensors[0].device] if tensors[0].device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the step's random numbers are for the program that is run
            # Checks of the data, which a record cannot have, happen here.
            form = map_tensors(lambda t: t.detach(), function(tensors))
            before = values(), _python_random_state()
            with _Recording():
                record = make_fx(lambda *args: [t.detach() for t in tensors_of(function(list(args)))])(*tensors)
            if before != (values(), _python_random_state()):
                raise NetworkError(
                    "the network or its loss changes Python values while it runs, such as an attribute that counts, or "
                    "draws random numbers of Python or NumPy: a program would not repeat that"
                )
            record.graph.eliminate_dead_code()
            record.recompile()
            mode = "reduce-overhead" if devices else "default"  # CUDA graphs
            program = torch.compile(record, dynamic=False, mode=mode)
            with torch.no_grad():
                self._run(program, tensors, tensors[0].device.type)  # compiles, or fails
        return program, form

    @staticmethod
    def _run(program: Callable[..., Any], tensors: Sequence[Tensor], device: str) -> list[Tensor]:
        with torch.autocast(device, enabled=False):  # its casts are in the record
            if device != "cuda":
                return list(program(*tensors))
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return [result.clone() for result in program(*tensors)]  # the next run writes where these are


class _Recording(TorchFunctionMode):
    """Refuses that values leave torch: a record would have those of the moment for good."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in LEAVES_TORCH:
            raise NetworkError(f"Tensor.{name}() takes values out of torch, which a program cannot repeat")
        return func(*args, **(kwargs or {}))


def _python_random_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest
