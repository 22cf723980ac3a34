"""A function together with its derivatives of any order as one compiled program."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_meta.errors import first_line
from lightning_meta.task import map_tensors, tensors_of

Flat = Callable[[list[Tensor]], Any]


class CompiledFunction:
    """Runs functions of tensors by `torch.compile`, inner gradients and all.

    The first call with tensors of some shapes runs the function, records the operations that this comes to, those of
    its gradients among them, and compiles the record; later ones run that. What the function does besides, and what it
    decides by anything but its tensors, is not repeated: so `key` has to name whatever it depends on. Where something
    cannot be recorded or compiled it runs as it is, and a warning says why.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why nothing is compiled, if that has failed."""
        self._programs: dict[Hashable, tuple[Callable[..., Any], Any]] = {}

    def __call__(self, function: Flat, tensors: Sequence[Tensor], key: Hashable) -> Any:
        """Call `function(list of tensors)`.

        Args:
            function: Returns any nesting of tensors. No gradient is taken of them outside.
            tensors: Its arguments.
            key: What else it depends on.

        Returns:
            What the function returns.
        """
        if self.reason is not None:
            return function(list(tensors))
        device = tensors[0].device.type
        shapes = tuple((t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors)
        key = (key, shapes, device, torch.is_autocast_enabled(device), torch.get_num_threads())
        if key not in self._programs:
            try:
                self._programs[key] = self._compiled(function, list(tensors))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.reason = first_line(error) or type(error).__name__
                warnings.warn(f"compile=True: running without, since compiling failed: {self.reason}", stacklevel=3)
                return function(list(tensors))
        program, form = self._programs[key]
        with torch.no_grad():
            results = self._run(program, tensors, device)
        ready = iter(results)
        return map_tensors(lambda _: next(ready), form)

    def _compiled(self, function: Flat, tensors: list[Tensor]) -> tuple[Callable[..., Any], Any]:
        """The program, which returns a flat list, and a nesting of tensors in the form of the function's result."""
        devices = [tensors[0].device] if tensors[0].device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the step's random numbers are for the program that is run
            # Checks of the data, which a record cannot have, happen here.
            form = map_tensors(lambda t: t.detach(), function(tensors))
            record = make_fx(lambda *args: [t.detach() for t in tensors_of(function(list(args)))])(*tensors)
            record.graph.eliminate_dead_code()
            record.recompile()
            mode = "reduce-overhead" if devices else "default"  # CUDA graphs
            program = torch.compile(record, dynamic=False, mode=mode)
            with torch.no_grad():
                self._run(program, tensors, tensors[0].device.type)  # compiles, or fails
        return program, form

    @staticmethod
    def _run(program: Callable[..., Any], tensors: Sequence[Tensor], device: str) -> list[Tensor]:
        if device != "cuda":
            return list(program(*tensors))
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return [result.clone() for result in program(*tensors)]  # the next run writes where these are
