"""Hyperparameters that any checkpoint reader can load."""

import inspect
from collections.abc import Mapping, MutableMapping
from pydoc import locate
from typing import Any, cast

from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin


def is_plain(value: Any) -> bool:
    """Whether a value consists of None, booleans, numbers, strings, lists, tuples and dicts only."""
    if type(value) is dict:
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str)


class PlainHyperparameters(HyperparametersMixin):
    """Keeps only hyperparameters of plain types, so that `torch.load(path, weights_only=True)` reads a checkpoint.

    Objects (a network, an optimizer class) given in a script are left out; those built by the command line are saved
    as the class paths and arguments they were built from.
    """

    def _set_hparams(self, hp: Any) -> None:
        if isinstance(hp, MutableMapping):
            hp = {name: _without_unknown_arguments(value) for name, value in hp.items() if is_plain(value)}
        super()._set_hparams(hp)


def _without_unknown_arguments(value: Any) -> Any:
    """Drop arguments that a class does not take: the command line links `n_way` to networks without one, too."""
    if not isinstance(value, dict) or not isinstance(value.get("init_args"), dict) or "class_path" not in value:
        return value
    parameters = inspect.signature(cast(type, locate(value["class_path"]))).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return value
    return value | {"init_args": {name: v for name, v in value["init_args"].items() if name in parameters}}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe the hyperparameters that two runs have and have different, one `name: old -> new` each."""
    names = sorted(name for name in set(old) & set(new) if not name.startswith("_"))
    return [f"{name}: {old[name]!r} -> {new[name]!r}" for name in names if old[name] != new[name]]
