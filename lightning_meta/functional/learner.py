"""A network as a pure function of its parameters, over a leading task dimension."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import UninitializedParameter

from lightning_meta.functional.kernels import task_kernels
from lightning_meta.functional.normalization import (
    batch_normalization,
    record_statistics,
    transductive_modes,
    with_stored_statistics,
)
from lightning_meta.task import map_tensors

Params = dict[str, Tensor]
"""Parameters by name, each `(B, *shape)`: one copy for every task."""


@dataclass(frozen=True)
class Learner:
    """Runs a network with every task's own parameters and buffers.

    Every tensor that goes in or out has a leading task dimension. Autograd is applied to the results, outside of
    `torch.vmap`: the sum of the tasks' losses, differentiated with respect to the tasks' own parameters, is each task's
    gradient. (Differentiating inside of `vmap` gives wrong second derivatives for affine batch, layer and instance
    norms.) Only the forward pass has to be one that `vmap` can run.

    Attributes:
        network: Called as `network(inputs)`.
        names: The parameters that the inner loop changes.
        vectorized: Whether tasks run together under `torch.vmap`; otherwise a batch holds one task.
        transductive: Whether normalization layers use the batch at hand, as MAML does in training and evaluation, or
            what their mode and their buffers say.
    """

    network: nn.Module
    names: tuple[str, ...]
    vectorized: bool
    transductive: bool = True

    @cached_property
    def _layers(self) -> list[nn.Module]:
        return list(self.network.modules())

    @cached_property
    def _modes(self) -> dict[Any, bool]:
        return transductive_modes(self._layers) if self.transductive else {}

    @cached_property
    def _is_tied(self) -> bool:
        """Whether a parameter or buffer has several names."""
        tensors = [
            id(tensor)
            for layer in self._layers
            for tensor in (*layer._parameters.values(), *layer._buffers.values())
            if tensor is not None
        ]
        return len(set(tensors)) < len(tensors)

    @cached_property
    def _has_rnn(self) -> bool:
        return any(isinstance(layer, nn.RNNBase) for layer in self._layers)

    def over_tasks(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Lift a function of one task to a batch: every tensor in and out gets a leading task dimension."""
        if self.vectorized:
            return torch.vmap(function, randomness="different")

        def of_one_task(*args: Any) -> Any:
            return map_tensors(lambda t: t.unsqueeze(0), function(*map_tensors(lambda t: t.squeeze(0), args)))

        return of_one_task

    def initial_params(self, tasks: int, *, trainable: bool) -> Params:
        """One copy of the adapted parameters for each task: views of the network's own if `trainable`."""
        own = dict(self.network.named_parameters())
        copies = {name: own[name].expand(tasks, *own[name].shape) for name in self.names}
        return copies if trainable else {name: copy.detach().requires_grad_() for name, copy in copies.items()}

    def initial_buffers(self, tasks: int) -> Params:
        """A copy of the buffers for each task, so that what one task writes no other reads."""
        return {
            name: buffer.detach().unsqueeze(0).expand(tasks, *buffer.shape).clone()
            for name, buffer in self.network.named_buffers()
        }

    def call(self, params: Params, buffers: Params, inputs: Any) -> Any:
        """Predictions of one task's parameters (without the task dimension): `(examples, ...)`."""
        with batch_normalization(self._modes), task_kernels(self.vectorized):
            return functional_call(self.network, (params, buffers), (inputs,), tie_weights=self._is_tied)

    @contextmanager
    def twice_differentiable(self) -> Iterator[None]:
        """Use kernels that have a second derivative, which those for speed of attention and cuDNN's RNNs have not."""
        with sdpa_kernel(SDPBackend.MATH), cudnn.flags(enabled=False) if self._has_rnn else nullcontext():
            yield

    def predict(self, params: Params, buffers: Params, inputs: Any) -> Any:
        """Predictions of each task's own parameters on its own inputs: `(B, examples, ...)`.

        What the network writes into its buffers in place is found in `buffers` afterwards, in new tensors: those before
        may be part of a graph.
        """
        buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
        return self.over_tasks(self.call)(params, buffers, inputs)

    def statistics(self, params: Params, buffers: Params, inputs: Any) -> Params:
        """Each task's batch-normalization statistics on inputs `(B, examples, ...)`: buffers by name, `(B, channels)`.

        The variance is the biased one.
        """

        def of_one_task(params: Params, buffers: Params, inputs: Any) -> Params:
            with record_statistics(self.network) as statistics:
                self.call(params, buffers, inputs)
            return statistics

        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        found: Params = self.over_tasks(of_one_task)(params, buffers, inputs)
        return found

    def frozen_to(self, params: Params, buffers: Params, inputs: Any) -> tuple["Learner", Params]:
        """A learner that normalizes with each task's statistics on `inputs` from now on, and the buffers it needs."""
        found = buffers | self.statistics(params, buffers, inputs)
        network = with_stored_statistics(self.network)
        buffers = {name: found[name] for name, _ in network.named_buffers() if name in found}
        return replace(self, network=network, transductive=False), buffers

    def part(self, name: str) -> "Learner":
        """The learner of a submodule, such as `"body"`; its parameters have names without the prefix."""
        return replace(self, network=self.network.get_submodule(name), names=tuple(strip(self.names, name)))


def select_parameters(network: nn.Module, patterns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the parameters that the inner loop adapts.

    Args:
        network: The network.
        patterns: Shell patterns (`"head.*"`, `"*.bias"`) or names of submodules (`"head"`); all if `None`.

    Returns:
        Names as in `network.named_parameters()` of parameters that require grad.

    Raises:
        ValueError: A pattern matches nothing, nothing is left to adapt, or a parameter is not initialized yet.
    """
    for name, parameter in network.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"The network's parameter {name!r} is lazy: run the network once before meta-learning it.")
    trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            f"{type(network).__name__} has no parameter that requires grad, so there is nothing to adapt or meta-train."
        )
    if patterns is None:
        return tuple(trainable)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    # A tied parameter has several names, of which the first stands for it.
    first = {id(parameter): name for name, parameter in network.named_parameters()}
    names = [(name, first[id(p)]) for name, p in network.named_parameters(remove_duplicate=False) if p.requires_grad]
    matches = {p: {own for n, own in names if fnmatchcase(n, p) or fnmatchcase(n, f"{p}.*")} for p in patterns}
    for pattern, found in matches.items():
        if not found:
            raise ValueError(
                f"adapt_only={pattern!r} matches none of the network's trainable parameters: {', '.join(trainable)}."
            )
    selected = tuple(name for name in trainable if any(name in found for found in matches.values()))
    if not selected:
        raise ValueError("adapt_only is empty: the inner loop would have nothing to adapt. Leave it out to adapt all.")
    return selected


def dict_key(name: str) -> str:
    """A parameter's name as a key of an `nn.ParameterDict`, which takes no dots."""
    return name.replace(".", "/")


def strip(names: Iterable[str], part: str) -> dict[str, str]:
    """The names of a submodule's own, without its prefix, and what each is called in the whole."""
    return {name.removeprefix(f"{part}."): name for name in names if name.startswith(f"{part}.")}


def failing_layer(network: nn.Module, run: Callable[[], object]) -> str | None:
    """Run something that fails and name the innermost layer of `network` it failed in, as `'name' (Type)`."""
    entered: list[nn.Module] = []

    def enter(module: nn.Module, _: Any) -> None:
        entered.append(module)

    def leave(*_: Any) -> None:
        entered.pop()

    names = {module: name for name, module in network.named_modules()}
    hooks = []
    for module in names:
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave))
    try:
        run()
    except Exception:
        return f"{names[entered[-1]]!r} ({type(entered[-1]).__name__})" if entered else None
    finally:
        for hook in hooks:
            hook.remove()
    return None
