"""The number of classes of a network: that of the data's tasks, where both have one."""

import inspect
from collections.abc import Iterator
from pydoc import locate
from typing import Any, cast

from jsonargparse import Namespace

from lightning_meta.errors import ConfigurationError


def networks_with_ways(config: Any, key: str) -> Iterator[tuple[str, Namespace]]:
    """Every class in a configuration that takes `n_way`, as its key and its `class_path` and `init_args`."""
    if isinstance(config, list):
        for i, inner in enumerate(config):
            yield from networks_with_ways(inner, f"{key}.{i}")
    elif isinstance(config, Namespace):
        arguments = config.get("init_args")
        if isinstance(arguments, Namespace) and "class_path" in config:
            if "n_way" in arguments:
                yield key, config
            config = arguments
        for name, inner in vars(config).items():
            yield from networks_with_ways(inner, f"{key}.{name}")


def fill_in_ways(config: Namespace, data: Any) -> None:
    """Give every network the number of classes of the data, unless the configuration gives it one.

    Args:
        config: The configuration of the model; changed in place.
        data: The data module; its `largest_way`, if it has one, is the number of classes of its largest task.

    Raises:
        ConfigurationError: A network is given another number than that of the data, or needs one that nobody gives.
    """
    way = getattr(data, "largest_way", None)
    for key, network in networks_with_ways(config.get("init_args"), "model"):
        given, arguments, name = network.init_args.n_way, network.init_args, type(data).__name__
        if way is not None and given is None:
            arguments.n_way = way
        elif way is not None and given != way:
            raise ConfigurationError(
                f"{key}.n_way={given}, but the largest tasks of {name} have {way} classes. Leave {key}.n_way out, so "
                "that the network gets as many outputs as the tasks have classes, or change data.n_way."
            )
        elif given is None:
            arguments.n_way = _own_ways(network)
            if arguments.n_way is None:
                raise ConfigurationError(
                    f"{key}.n_way is missing: the tasks of {name} have no classes that could be counted. Give it."
                )


def keep_own_ways(config: Namespace) -> None:
    """Give every network that a data module has, such as a backbone, its own number of classes where none is given.

    Args:
        config: The configuration of the data module; changed in place.
    """
    for _, network in networks_with_ways(config.get("init_args"), "data"):
        if network.init_args.n_way is None:
            network.init_args.n_way = _own_ways(network) or 1  # of a head that data modules do not use


def _own_ways(network: Namespace) -> int | None:
    """The default of a network's argument `n_way`, if it has one."""
    parameter = inspect.signature(cast(type, locate(network.class_path))).parameters.get("n_way")
    return None if parameter is None or parameter.default is parameter.empty else cast(int, parameter.default)
