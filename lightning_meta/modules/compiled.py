"""Outer steps by a compiled program."""

import itertools
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from lightning_meta.algorithms.base import Outcome
from lightning_meta.functional.inner_loop import scaled_gradients
from lightning_meta.functional.problem import Problem
from lightning_meta.functional.python_values import own_methods, python_values
from lightning_meta.task import map_tensors, structure_of, tensors_of

if TYPE_CHECKING:
    from lightning_meta.modules.meta_module import MetaModule

Gradients = tuple[Tensor, ...]


def compiled_gradient(module: "MetaModule", whole: Problem) -> Callable[[Problem], tuple[Outcome, Gradients]] | None:
    """What makes the outcome of a part of a batch, and its part of the meta-gradient, by one compiled program.

    Returns:
        `None` if the outer step depends on what is different in every one, so that it is not compiled.
    """
    key = _key(module, whole)
    if key is None:
        return None
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    values = partial(_values, module)

    def gradient(part: Problem) -> tuple[Outcome, Gradients]:
        def function(tensors: list[Tensor]) -> tuple[Outcome, Gradients]:
            given = iter(tensors)
            state = {name: next(given).detach().requires_grad_(name in trainable) for name in own}
            with torch.enable_grad(), _reparametrize_module(module, state, tie_weights=True):
                tables = {n.replace("/", "."): table for n, table in module.algorithm.step_params.items()}
                tasks = map_tensors(lambda _: next(given), part.tasks)
                outcome = module.algorithm.learn(replace(part, tasks=tasks, step_params=tables))
                wanted = [state[name] for name in own if name in trainable]
                gradients = scaled_gradients(outcome.losses.sum() / whole.count, wanted)
            return outcome._replace(losses=outcome.losses.detach()), gradients

        structures = [structure_of(tree) for examples in part.tasks for tree in examples]
        result: tuple[Outcome, Gradients] = module._program(
            function,
            [*(t.detach() for t in own.values()), *tensors_of(part.tasks)],
            (key, part.learner.vectorized, whole.count, *structures),
            values,
        )
        return result

    return gradient


def _key(module: "MetaModule", problem: Problem) -> Hashable | None:
    """What an outer step depends on besides the module's parameters, its buffers and the tasks' tensors."""
    own = module.algorithm.compile_key(problem.outer_step)
    if own is None or module.loss_scale != 1:
        return None
    modes = tuple(layer.training for layer in module.modules())
    trainable = tuple(p.requires_grad for p in module.parameters())
    return own, modes, trainable, problem.ways, problem.details


def _values(module: "MetaModule") -> Hashable:
    """The Python values that the network, the algorithm, the losses and overridden hooks run with."""
    kind = type(module)
    hooks = own_methods(kind)  # type: ignore[arg-type]
    own = {name: v for name, v in vars(module).items() if name[0] != "_" and isinstance(v, int | float | str)}
    layers = itertools.chain(module.network.modules(), module.algorithm.modules())
    return kind, python_values(layers, module.loss, module.inner_loss, *hooks, own if hooks else None)
