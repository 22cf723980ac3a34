"""Names of a network's parameters, and of the layer that an error comes from."""

import copy
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.task import tensors_of

Params = dict[str, Tensor]
"""Parameters (or buffers) by name, each `(B, *shape)`: one copy for every task."""


def select_parameters(network: nn.Module, patterns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the parameters that the inner loop adapts.

    Args:
        network: The network.
        patterns: Shell patterns (`"head.*"`, `"*.bias"`) or names of submodules (`"head"`); all if `None`.

    Returns:
        Names as in `network.named_parameters()` of parameters that require grad.

    Raises:
        ConfigurationError: A pattern matches nothing, nothing is left to adapt, or a parameter is not initialized yet.
    """
    for name, parameter in network.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ConfigurationError(
                f"The network's parameter {name!r} is lazy: run the network once before meta-learning it."
            )
    trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigurationError(
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
            raise ConfigurationError(
                f"adapt_only={pattern!r} matches none of the network's trainable parameters: {', '.join(trainable)}."
            )
    selected = tuple(name for name in trainable if any(name in found for found in matches.values()))
    if not selected:
        raise ConfigurationError(
            "adapt_only is empty: the inner loop would have nothing to adapt. Leave it out to adapt all."
        )
    return selected


def check_network(network: nn.Module) -> nn.Module:
    """Refuse what is not a network, and layers that meta-learning cannot use.

    Raises:
        ArgumentTypeError: It is not an `nn.Module`.
        ConfigurationError: It is scripted, compiled or wrapped for several devices, or there is a `SyncBatchNorm`.
    """
    if not isinstance(network, nn.Module):
        raise ArgumentTypeError(f"network must be an nn.Module, got {network!r}.")
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ConfigurationError(
            f"network is a {type(network).__name__}. Give the network in it, network.module; several devices are the "
            "Trainer's: Trainer(devices=2, strategy='ddp')."
        )
    if isinstance(network, torch.jit.ScriptModule):
        raise ConfigurationError(
            "network is scripted, and its code cannot run with each task's own parameters. Give the nn.Module that it "
            "was made of; compile=True compiles outer steps, and what adapt_to returns can be scripted."
        )
    for name, layer in network.named_modules():
        if type(layer).__module__.startswith("torch._dynamo") or layer._compiled_call_impl is not None:
            raise ConfigurationError(
                f"{f'Layer {name!r}' if name else 'network'} is compiled by torch.compile, so it cannot be "
                "differentiated twice. Give what it was made of (`_orig_mod` of what torch.compile returned), and "
                "compile=True, which compiles whole outer steps."
            )
        if isinstance(layer, nn.SyncBatchNorm):
            raise ConfigurationError(
                f"Layer {name!r} is a SyncBatchNorm, which cannot be differentiated twice. Tasks are normalized one by "
                "one here, so an ordinary BatchNorm is what you want on many devices too."
            )
    return network


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network, tensors that it has computed and kept without their graph, which torch refuses to copy."""
    computed = [
        tensor
        for layer in network.modules()
        for value in vars(layer).values()
        if isinstance(value, Tensor) or type(value) in (list, tuple, dict)
        for tensor in tensors_of(value)
        if not tensor.is_leaf
    ]
    return copy.deepcopy(network, {id(tensor): tensor.detach().clone() for tensor in computed})


def dict_key(name: str) -> str:
    """A parameter's name as a key of an `nn.ParameterDict`, which takes no dots."""
    return name.replace(".", "/")


def strip(names: Iterable[str], part: str) -> dict[str, str]:
    """The names of a submodule's own, without its prefix, and what each is called in the whole."""
    return {name.removeprefix(f"{part}."): name for name in names if name.startswith(f"{part}.")}


def take_written(params: Params, buffers: Params) -> tuple[Params, Params]:
    """Parameters with what a network has written into them, which is found among its buffers, and buffers without it.

    As in training by hand, such writing has no derivative: a gradient passes as if there had been none.
    """
    new = {name: p + (buffers[name] - p).detach() for name, p in params.items() if name in buffers}
    return params | new, {name: buffer for name, buffer in buffers.items() if name not in new}


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
