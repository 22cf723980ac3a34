"""Imports at the time of use: libraries of the extra `rl`, and what a configuration names."""

import importlib
from typing import Any

from lightning_meta.errors import ConfigurationError


def required(name: str) -> Any:
    """Import a library of the extra `rl`.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"{name} cannot be imported ({error}). Install it: pip install 'lightning-meta[rl]'."
        ) from error


def imported(value: Any) -> Any:
    """What a full path such as `my_project.robots.MyRobot` names; anything else as it is.

    Raises:
        ConfigurationError: There is no such thing.
    """
    if not isinstance(value, str) or "." not in value or value.rsplit("-v", 1)[-1].isdigit():
        return value
    parts = value.split(".")
    for size in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError as error:
            if error.name is not None and f"{'.'.join(parts[:size])}.".startswith(f"{error.name}."):
                continue
            raise ConfigurationError(f"{value} cannot be imported: {error}.") from error
        try:
            for name in parts[size:]:
                found = getattr(found, name)
        except AttributeError as error:
            raise ConfigurationError(f"{value} cannot be imported: {error}.") from error
        return found
    raise ConfigurationError(f"{value} cannot be imported: there is no module {parts[0]}.")
