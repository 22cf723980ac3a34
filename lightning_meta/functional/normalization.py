"""Which statistics normalization layers use: the batch's, or those of a support set."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_meta.errors import NetworkError
from lightning_meta.functional.network import copied

Statistics = dict[str, Tensor]
"""Buffers `<layer>.running_mean` and `<layer>.running_var` by name."""


def _normalizing_layers(network: nn.Module) -> dict[str, _NormBase]:
    """Batch and instance norms that are to use the data at hand.

    Layers that track running statistics and whose own parameters are all frozen belong to a pretrained network: they
    keep using what they tracked.
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, _NormBase)}
    return {name: layer for name, layer in layers.items() if not _is_pretrained(network, name)}


def _is_pretrained(network: nn.Module, name: str) -> bool:
    """Whether a layer, or the innermost part of the network around it that has parameters, is frozen."""
    if not network.get_submodule(name).track_running_stats:
        return False
    while True:
        own = list(network.get_submodule(name).parameters())
        if own or not name:
            return bool(own) and not any(p.requires_grad for p in own)
        name = name.rpartition(".")[0]


def batch_normalized_layers(network: nn.Module) -> dict[str, _BatchNorm]:
    """The layers, by name, whose output for one example depends on the others in the batch."""
    return {name: layer for name, layer in _normalizing_layers(network).items() if isinstance(layer, _BatchNorm)}


def transductive_modes(network: nn.Module) -> dict[_NormBase, bool]:
    """For every batch and instance norm of a network whether it is to use the data at hand."""
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, _NormBase)]
    return {layer: not _is_pretrained(network, name) for name, layer in layers}


@contextmanager
def batch_normalization(transductive: dict[_NormBase, bool]) -> Iterator[None]:
    """Let normalization layers use the statistics of the batch at hand, whatever mode the network is in.

    That is how MAML normalizes, in meta-training and in evaluation (transductively).

    Args:
        transductive: What `transductive_modes` says of the layers.
    """
    modes = {layer: layer.training for layer in transductive}
    try:
        for layer, mode in transductive.items():
            layer.training = mode
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def moments(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of each channel, `(channels,)`, in at least float32.

    Args:
        x: `(examples, channels, ...)`.
        mask: Which examples there are, `(examples,)`; all if `None`.

    Raises:
        NetworkError: Something else than the examples is in the first dimension, so that the mask does not fit.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # autocast has it in 16 bits
    dims = [d for d in range(x.dim()) if d != 1]
    if mask is None:
        return x.mean(dims), x.var(dims, unbiased=False)
    if len(x) != len(mask):
        raise NetworkError(
            f"Batch normalization gets {len(x)} things to normalize together, of {len(mask)} examples: which of them "
            "belong to the padding of a task cannot be told. Normalize (examples, channels, ...), or give all tasks "
            "the same size."
        )
    weights = mask.to(x.dtype) / (mask.sum() * x[:, 0].numel() / len(x))
    weights = weights.view(-1, *(1,) * (x.dim() - 1))
    mean = (x * weights).sum(dims)
    centred = x - mean.view(1, -1, *(1,) * (x.dim() - 2))
    return mean, (centred.square() * weights).sum(dims)


def masked_batch_norm(
    x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalization by the statistics of the examples that there are.

    Args:
        x: `(examples, channels, ...)`.
        mask: Which examples there are, `(examples,)`.
        weight: Scales `(channels,)`, or none.
        bias: Shifts `(channels,)`, or none.
        eps: What is added to the variance.

    Returns:
        The normalized examples, and the mean and the biased variance; not a number where there is a single value.
    """
    mean, var = moments(x, mask)
    if x[0, 0].numel() == 1:  # torch refuses to normalize a single value, and so are results of it none
        var = torch.where(mask.sum() > 1, var, torch.nan)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    factor = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    y = (x - mean.view(shape)) * factor.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype), mean, var


@contextmanager
def record_statistics(network: nn.Module, mask: Tensor | None = None) -> Iterator[Statistics]:
    """Collect the mean and the biased variance of every batch-normalized input while `network` runs once.

    The dictionary is filled on leaving. A layer that runs several times in one pass gets the statistics of all its
    inputs, pooled with equal weight. What `mask`, `(examples,)`, leaves out does not count.
    """
    layers = batch_normalized_layers(network)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    statistics: Statistics = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: found[name].append(moments([*args, *kwargs.values()][0], mask)),
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
    for name, seen in found.items():
        if seen:
            means, variances = torch.stack([m for m, _ in seen]), torch.stack([v for _, v in seen])
            statistics[f"{name}.running_mean"] = means.mean(0)
            statistics[f"{name}.running_var"] = variances.mean(0) + means.var(0, unbiased=False)


def with_batch_statistics(network: nn.Module) -> nn.Module:
    """A copy of the network, in evaluation mode, that normalizes with the batch at hand (transductively)."""
    network = copied(network).eval()
    for layer in _normalizing_layers(network).values():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return network


def with_stored_statistics(network: nn.Module) -> nn.Module:
    """A copy of the network, in evaluation mode, whose batch norms use stored statistics (to be filled in)."""
    state = itertools.chain(network.parameters(), network.buffers())
    reference = next((tensor for tensor in state if tensor.is_floating_point()), torch.empty(0))
    network = with_batch_statistics(network)
    for layer in batch_normalized_layers(network).values():
        layer.track_running_stats = True
        layer.running_mean = reference.new_zeros(layer.num_features)
        layer.running_var = reference.new_ones(layer.num_features)
        layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=reference.device)
    return network


@torch.no_grad()
def advance_spectral_norms(layers: Iterable[nn.Module]) -> None:
    """Go on with the power iterations of spectral norms by one, as a forward pass in training would.

    What such a pass writes into its vectors stays the task's in an inner loop. So those of the network itself, from
    which tasks start, follow its weights here.
    """
    for layer in layers:
        for parametrized in getattr(layer, "parametrizations", {}).values():
            if any(isinstance(each, _SpectralNorm) for each in parametrized):
                parametrized()
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                hook.compute_weight(layer, do_power_iteration=layer.training)
