"""What a network writes while it runs stays the task's: into weights, inputs, and attributes of its own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from lightning_meta.functional.kernels.vmap import plain
from lightning_meta.task import tensors_of

# What torch keeps in every module, but for buffers, to which a forward pass may add one.
INTERNAL = frozenset(vars(nn.Module())) - {"_buffers"}
IN_PLACE = frozenset(
    ["__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__", "__setitem__"]
)


class WritesInPlace(Exception):
    """A network is about to write where it must not; an attribute of `Isolation` says so now, and it can run again."""


class Isolation:
    """Undoes what running a network leaves in it.

    Attributes:
        writes: Whether the network is known to write into its weights, as `nn.Embedding(max_norm=1)` does, or into its
            inputs; each task gets copies of them then.
        aliases: Whether it is known to write through a view of what a kernel made, where there would be a copy: in
            another precision or order in memory. Then kernels give what torch's layers give, in float32 and in order.
    """

    def __init__(self) -> None:
        self.writes = False
        self.aliases = False
        self._layers: Sequence[nn.Module] = ()
        self._kept: list[tuple[dict[str, Any], dict[str, Any], list[int]]] = []
        self._inside: list[tuple[Any, Any]] = []

    def begin(self, layers: Sequence[nn.Module]) -> None:
        """Undo what was left before, and remember what the layers' attributes are, once for the same list of layers."""
        self.restore()
        if layers is self._layers:
            return
        self._layers = layers
        watched = [layer for layer in layers if _may_keep(layer)]
        self._kept = [(own := vars(layer), own.copy(), [*map(id, own.values())]) for layer in watched]
        self._inside = [
            (value, value.copy())
            for own, _, _ in self._kept
            for key, value in own.items()
            if key not in INTERNAL and type(value) in (dict, list) and (key != "_buffers" or None in value.values())
        ]

    def restore(self) -> None:
        """Put back attributes in which tensors were left: caches, and what is kept for a look at it."""
        for own, before, ids in self._kept:
            if [*map(id, own.values())] == ids:
                continue
            for key in [k for k, v in own.items() if v is not before.get(k, own) and _holds_tensors(v)]:
                if key in before:
                    own[key] = before[key]
                else:
                    del own[key]
        for now, content in self._inside:
            if len(now) != len(content) or _values(now) != _values(content):
                self._put_back(now, content)

    @staticmethod
    def _put_back(now: Any, content: Any) -> None:
        if _holds_tensors(now):
            now.clear()
            if isinstance(now, dict):
                now.update(content)
            else:
                now.extend(content)


def _may_keep(layer: nn.Module) -> bool:
    """Whether something may be kept in a layer: torch's own keep nothing, unless a hook of theirs does."""
    has_hooks = layer._forward_hooks or layer._forward_pre_hooks
    return bool(has_hooks) or not type(layer).__module__.startswith("torch.nn.modules.")


def _values(container: Any) -> list[int]:
    return [id(v) for v in (container.values() if isinstance(container, dict) else container)]


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (type(value) in (dict, list, tuple) and bool(tensors_of(value)))


def storage(tensor: Tensor) -> int:
    """Where in memory a tensor is; views of it are in the same place."""
    return plain(tensor).untyped_storage().data_ptr()


def written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a function of torch is about to write into, if it does that."""
    name = getattr(func, "__name__", "")
    if (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE:
        return args[0] if args and isinstance(args[0], Tensor) else None
    if kwargs.get("inplace") is True:
        return args[0] if args else kwargs.get("input")
    out = kwargs.get("out")
    return out if isinstance(out, Tensor) else None


class _Once:
    """In the place of the function that torch's reentrant checkpoints are: the function is run, and that is all."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        return function(*args)


def _once(*_: Any, **__: Any) -> Iterator[None]:
    yield


# What releases of torch call from within `checkpoint`.
INSTEAD = {
    name: other
    for name, other in {
        "CheckpointFunction": _Once,
        "_checkpoint_without_reentrant_generator": _once,
        "_checkpoint_without_reentrant_generator_impl": _once,
    }.items()
    if hasattr(torch.utils.checkpoint, name)
}


class without_activation_checkpoints:
    """Within it, `torch.utils.checkpoint` keeps activations.

    To compute them again in the backward pass, when the network has its own parameters again and not the task's, gives
    a wrong gradient. `checkpoint_inner_steps=True` saves more memory, and is right.
    """

    def __enter__(self) -> None:
        self.own = {name: getattr(torch.utils.checkpoint, name) for name in INSTEAD}
        for name, other in INSTEAD.items():
            setattr(torch.utils.checkpoint, name, other)

    def __exit__(self, *_: Any) -> None:
        for name, own in self.own.items():
            setattr(torch.utils.checkpoint, name, own)
