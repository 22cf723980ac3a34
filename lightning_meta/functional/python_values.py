"""The values that Python code runs with besides its tensors' contents, which a compiled program would keep for good."""

from collections.abc import Hashable, Iterable
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What torch keeps in every module: hooks, which are looked at, parameters and buffers, which are a program's arguments.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = frozenset([type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, type])
_CONTAINERS = frozenset([list, tuple, dict, set, frozenset])
_LIBRARIES = ("torch", "numpy", "lightning", "builtins")


class _Same:
    """Equal to itself only. It keeps the object, so that no later one can have its identity."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def python_values(layers: Iterable[nn.Module], *others: Any) -> Hashable:
    """What layers and other objects run with: equal for two moments if nothing has changed between them.

    These are the attributes of layers and of objects among those, hooks, what a function closes over or has as a
    default, and numbers and strings among the globals that code names. Parameters and buffers are left out; tensors
    elsewhere count by what they are and by how often they have been written into.

    Args:
        layers: Modules with all their submodules, as `module.modules()` gives them.
        others: Losses, for instance: functions, modules, or any objects.
    """
    layers = list(layers)
    seen = {id(layer) for layer in layers}
    return tuple([_of_layer(layer, seen) for layer in layers]), tuple([_of(other, seen) for other in others])


def _of_layer(layer: nn.Module, seen: set[int]) -> Hashable:
    own, kind = layer.__dict__, type(layer)
    found = [v if type(v) in _PLAIN else _of(v, seen) for k, v in own.items() if k not in _OF_EVERY_MODULE]
    for hooks in (own["_forward_hooks"], own["_forward_pre_hooks"]):
        if hooks:
            found += [_of(hook, seen) for hook in hooks.values()]
    methods = own_methods(kind)  # type: ignore[arg-type]
    if methods:
        found += [_of(method, seen) for method in methods]
    return kind, len(own), tuple(found)


@lru_cache(maxsize=1000)
def own_methods(kind: Any) -> list[FunctionType]:
    """The methods of a class that are none of torch's, Lightning's or this package's."""
    own = [base for base in kind.__mro__ if not base.__module__.startswith(_LIBRARIES)]
    return [value for base in own for value in vars(base).values() if isinstance(value, FunctionType)]


def _of(value: Any, seen: set[int]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return _Same(value), value._version
    if id(value) in seen:
        return kind
    seen.add(id(value))
    if kind in _CONTAINERS:
        items = [*value.items()] if kind is dict else [*value]
        each = [_of(item, seen) for item in items]
        return kind, frozenset(each) if kind in (set, frozenset) else tuple(each)
    if isinstance(value, FunctionType):
        return _of_function(value, seen)
    if isinstance(value, MethodType):
        return _of(value.__func__, seen), _of(value.__self__, seen)
    if isinstance(value, partial):
        return _of(value.func, seen), _of(value.args, seen), _of(value.keywords, seen)
    if isinstance(value, nn.Module):
        return tuple([_of_foreign(layer, seen) for layer in value.modules()])
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, ModuleType) or kind.__module__.startswith(_LIBRARIES):
        return _Same(value)
    return _Same(value), _of(getattr(value, "__dict__", None), seen)


def _of_foreign(layer: nn.Module, seen: set[int]) -> Hashable:
    """A module that is not among the layers: its parameters and buffers are no arguments of a program."""
    tensors = (*layer._parameters.values(), *layer._buffers.values())
    return _of_layer(layer, seen), layer.training, *[_of(tensor, seen) for tensor in tensors]


def _of_function(function: FunctionType, seen: set[int]) -> Hashable:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    code = function.__code__
    parts = (function.__defaults__, function.__kwdefaults__, *cells)
    return code, *[_of(part, seen) for part in parts], *_of_globals(code, function.__globals__, seen)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # what is not defined yet
        return False
    return True


def _of_globals(code: CodeType, names: dict[str, Any], seen: set[int]) -> list[Hashable]:
    """Plain values, containers and functions of the user's own among the globals that code, and code in it, names."""
    found = []
    for name in code.co_names:
        value = names.get(name)
        own = isinstance(value, FunctionType) and not (value.__module__ or "").startswith(_LIBRARIES)
        if value is not None and (type(value) in _PLAIN - {type} or type(value) in _CONTAINERS or own):
            found.append(_of(value, seen))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found += _of_globals(inner, names, seen)
    return found
