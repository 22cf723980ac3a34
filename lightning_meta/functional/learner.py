"""A network run with every task's own parameters and buffers."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.stateless import _reparametrize_module

from lightning_meta.functional.kernels import Isolation, WritesInPlace, in_float32, task_kernels
from lightning_meta.functional.network import Params, strip
from lightning_meta.functional.normalization import (
    batch_normalization,
    batch_normalized_layers,
    record_statistics,
    transductive_modes,
    with_stored_statistics,
)
from lightning_meta.functional.recompute import is_recorded
from lightning_meta.task import first_tensor, map_tensors, tensors_of

ALL_TASKS = partial(torch.vmap, randomness="different")


def one_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lift a function of one task to a batch of one."""

    def of_batch(*args: Any) -> Any:
        return map_tensors(lambda t: t.unsqueeze(0), function(*map_tensors(lambda t: t.squeeze(0), args)))

    return of_batch


@dataclass(frozen=True)
class Learner:
    """Runs a network with every task's own parameters and buffers.

    Every tensor that goes in or out has a leading task dimension, and none that goes in is changed. Autograd is applied
    to the results, outside of `torch.vmap`: the sum of the tasks' losses, differentiated with respect to the tasks' own
    parameters, is each task's gradient. (Differentiating inside of `vmap` gives wrong second derivatives for affine
    batch, layer and instance norms.) Only the forward pass has to be one that `vmap` can run.

    Attributes:
        network: Called as `network(inputs)`.
        names: The parameters that the inner loop changes.
        vectorized: Whether tasks run together under `torch.vmap`; otherwise a batch holds one task.
        transductive: Whether normalization layers use the batch at hand, as MAML does in training and evaluation, or
            what their mode and their buffers say.
        isolation: Undoes what the network leaves in itself.
        records: Whether the buffers afterwards are to have the statistics of what batch norms are given.
    """

    network: nn.Module
    names: tuple[str, ...]
    vectorized: bool
    transductive: bool = True
    isolation: Isolation = field(default_factory=Isolation, compare=False)
    records: bool = False

    @cached_property
    def facts(self) -> tuple[dict[Any, bool], bool, bool, list[nn.Module]]:
        """The modes of normalization layers; whether a tensor has several names, if there is an RNN; all layers."""
        layers = list(self.network.modules())
        tensors = [
            id(tensor)
            for layer in layers
            for tensor in (*layer._parameters.values(), *layer._buffers.values())
            if tensor is not None
        ]
        has_norms = self.transductive and any(isinstance(layer, _NormBase) for layer in layers)
        modes = transductive_modes(self.network) if has_norms else {}
        return modes, len(set(tensors)) < len(tensors), any(isinstance(layer, nn.RNNBase) for layer in layers), layers

    def over_tasks(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Lift a function of one task to a batch: every tensor in and out gets a leading task dimension."""
        return ALL_TASKS(function) if self.vectorized else one_task(function)

    def call(self, params: Params, buffers: Params, inputs: Any, mask: Tensor | None = None) -> Any:
        """Predictions of one task's parameters, `(examples, ...)`; with buffers, also what is new among those."""
        modes, is_tied, _, layers = self.facts
        network = self.network

        def untouchable() -> Iterable[Tensor]:
            return (*network.parameters(), *params.values(), *tensors_of(inputs))

        kernels = task_kernels(self.vectorized, mask, layers, self.isolation, untouchable)
        state = {**params, **buffers}
        recorded: AbstractContextManager[Params] = record_statistics(network, mask) if self.records else nullcontext({})
        reparametrized = _reparametrize_module(network, state, tie_weights=is_tied)
        with recorded as statistics, batch_normalization(modes), kernels, reparametrized:
            predictions = network(inputs)
            if kernels.rounded:
                predictions = map_tensors(in_float32, predictions)
            # Images of one task have their channels last.
            if any(tensor.dim() > 3 for tensor in tensors_of(predictions)):
                predictions = map_tensors(torch.Tensor.contiguous, predictions)
            now = dict(network.named_buffers()) if buffers else {}
        if not buffers and not self.records:
            return predictions
        return predictions, {n: now[n] for n, b in buffers.items() if now.get(n, b) is not b} | statistics

    def predict(self, params: Params, buffers: Params, inputs: Any, mask: Tensor | None = None) -> tuple[Any, Params]:
        """Predictions of each task's own parameters on its own inputs, and the buffers afterwards.

        Args:
            params: `(B, *shape)` each.
            buffers: `(B, *shape)` each.
            inputs: `(B, examples, ...)`.
            mask: Which examples there are, `(B, examples)`; all if `None`.

        Returns:
            `(B, examples, ...)`, and new buffers, with what the network has written into them. Parameters that it has
            written into are among them: see `take_written`.
        """
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        masks = () if mask is None else (mask,)
        run = ALL_TASKS if self.vectorized else one_task
        copies = {}
        if self.isolation.writes:
            every = {n: p.expand(len(first_tensor(inputs)), *p.shape) for n, p in self.network.named_parameters()}
            params = copies = {name: param.clone() for name, param in (every | params).items()}
            inputs = map_tensors(torch.clone, inputs)
        try:
            found = run(self.call)(params, own, inputs, *masks)
            predictions, assigned = found if own or self.records else (found, {})
            return predictions, own | assigned | {n: c for n, c in copies.items() if n in self.names}
        except WritesInPlace:
            if is_recorded():  # from its beginning then, so that it does the same when it is computed again
                raise
            return self.predict(params, buffers, inputs, mask)
        except RuntimeError as error:
            if torch.is_grad_enabled() or "does not require grad" not in str(error):
                raise
        with torch.enable_grad():  # a network that differentiates in its forward pass
            predictions, buffers = self.predict(params, buffers, inputs, mask)
        return map_tensors(torch.detach, predictions), buffers

    def statistics(self, params: Params, buffers: Params, inputs: Any, mask: Tensor | None = None) -> Params:
        """Each task's batch-normalization statistics on inputs `(B, examples, ...)`: buffers by name, `(B, channels)`.

        The variance is the biased one.
        """
        _, found = replace(self, records=True).predict(params, buffers, inputs, mask)
        self.isolation.restore()
        names = [
            f"{n}.{kind}" for n in batch_normalized_layers(self.network) for kind in ("running_mean", "running_var")
        ]
        return {name: found[name] for name in names if name in found}

    def frozen_to(
        self, params: Params, buffers: Params, inputs: Any, mask: Tensor | None = None
    ) -> tuple["Learner", Params]:
        """A learner that normalizes with each task's statistics on `inputs` from now on, and the buffers it needs."""
        found = buffers | self.statistics(params, buffers, inputs, mask)
        network = with_stored_statistics(self.network)
        buffers = {name: found[name] for name, _ in network.named_buffers() if name in found}
        return replace(self, network=network, transductive=False), buffers

    def part(self, name: str) -> "Learner":
        """The learner of a submodule, such as `"body"`; its parameters have names without the prefix."""
        return replace(self, network=self.network.get_submodule(name), names=tuple(strip(self.names, name)))
