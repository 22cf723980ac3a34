"""Hyperparameters that any checkpoint reader can load."""

from collections.abc import Mapping, MutableMapping
from typing import Any


def is_plain(value: Any) -> bool:
    """Whether a value consists of None, booleans, numbers, strings, lists, tuples and dicts only."""
    if type(value) is dict:
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str)


def plain_hyperparameters(hyperparameters: Any) -> Any:
    """Keep only hyperparameters of plain types, so that `torch.load(path, weights_only=True)` reads a checkpoint.

    Objects (a network, an optimizer class) given in a script are left out; those built by the command line are saved
    as the class paths and arguments they were built from.
    """
    if not isinstance(hyperparameters, MutableMapping):
        return hyperparameters
    return {name: value for name, value in hyperparameters.items() if is_plain(value)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe the hyperparameters that two runs have and have different, one `name: old -> new` each."""
    names = sorted(name for name in set(old) & set(new) if not name.startswith("_"))
    return [f"{name}: {old[name]!r} -> {new[name]!r}" for name in names if old[name] != new[name]]
