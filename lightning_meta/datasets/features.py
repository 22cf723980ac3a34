"""Features of a frozen network, computed once and cached, in the place of images."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from lightning_meta.datasets.class_dataset import ClassDataset, image_scale
from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.files import cache_folder, new_array

_FORMAT = 1
_BATCH = 64


def encode_images(
    dataset: Dataset[Any], network: nn.Module, *, cache: Path | None = None, name: str = "images"
) -> Dataset[Any]:
    """The features that a frozen network gives of each example, computed once for the same data and weights.

    The network runs in evaluation mode, on a GPU if there is one, and is left as it is.

    Args:
        dataset: A `ClassDataset`, or a `Subset` of one (of a `Subset`): all of its inputs are encoded.
        network: Its submodule `body` if it has one, otherwise the whole network: inputs `(examples, ...)`, uint8 images
            scaled to [0, 1], to `(examples, features)`.
        cache: The folder of cached features; `lightning_meta` in the user's folder of caches if `None`.
        name: What to call them in the progress bar.

    Returns:
        The same examples, targets and classes with float32 vectors for inputs, which lie in a memory map.

    Raises:
        ArgumentTypeError: The data is not held as one tensor, or `network` is not an `nn.Module`.
        ConfigurationError: The network does not give one vector for each example, or normalizes by the batch at hand.
        DataError: The memory map cannot be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> from lightning_meta.datasets import glyphs
        >>> body = nn.Sequential(nn.AvgPool2d(7), nn.Flatten())
        >>> encode_images(glyphs(range(3)), body, cache=Path(mkdtemp()))[0][0].shape
        torch.Size([16])
    """
    if isinstance(dataset, Subset):
        encoded = encode_images(dataset.dataset, network, cache=cache, name=name)
        return Subset(encoded, dataset.indices)
    if not isinstance(dataset, ClassDataset):
        raise ArgumentTypeError(f"{name}: only data held as one tensor can be encoded, got {type(dataset).__name__}.")
    if not isinstance(network, nn.Module):
        raise ArgumentTypeError(f"backbone must be an nn.Module, got {network!r}.")
    body = getattr(network, "body", None)
    body = body if isinstance(body, nn.Module) else network
    folder = cache_folder() if cache is None else cache
    layers = [(name, layer) for name, layer in body.named_modules() if isinstance(layer, _BatchNorm)]
    mixed = [name for name, layer in layers if layer.running_mean is None]
    if mixed:
        raise ConfigurationError(
            f"{name}: the layer {mixed[0]!r} of the backbone normalizes by the batch at hand, so that features would "
            "depend on their neighbours. Give a network whose batch normalization tracks statistics in its training "
            "(track_running_stats=True)."
        )
    scale = "" if dataset.scale in (None, image_scale(dataset.inputs)) else f"-{dataset.scale}"
    target = folder / f"{dataset.key or _key_of(dataset.inputs)}{scale}-{_key_of(body)}.npy"
    if not target.is_file():
        _encode(dataset, body, target, name)
    features = ClassDataset(torch.from_numpy(np.load(target, mmap_mode="c")), dataset.targets, dataset.classes)
    features.key = target.stem
    return features


def _encode(dataset: ClassDataset, body: nn.Module, target: Path, name: str) -> None:
    inputs, scale = dataset.inputs, dataset.scale or image_scale(dataset.inputs)
    modes = {layer: layer.training for layer in body.modules()}
    first = next(body.parameters(), torch.empty(0))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def features_of(start: int) -> Tensor:
        batch = inputs[start : start + _BATCH].to(device)
        if batch.dtype == torch.uint8 and scale is not None:
            batch = batch.float().div_(1 / scale)
        found: Tensor = body(batch.to(first.dtype))
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(batch):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigurationError(
                f"{name}: a backbone must give a vector for each example, (examples, features), but gives {got} for "
                f"{len(batch)} examples. Flatten or average feature maps at its end."
            )
        return found.float().cpu()

    try:
        body.eval().to(device)
        with torch.inference_mode():
            size = features_of(0).shape[1]
            with new_array(target, (len(inputs), size), np.float32, f"{name}: the features") as features:
                starts = range(0, len(inputs), _BATCH)
                for start in tqdm(starts, f"Encoding {name}", unit="batch", disable=len(starts) < 2):
                    features[start : start + _BATCH] = features_of(start).numpy()
    finally:
        body.to(first.device)
        for layer, mode in modes.items():
            layer.training = mode


def _key_of(content: Tensor | nn.Module) -> str:
    """Of the values of a tensor, or of a network's layers and weights."""
    digest = hashlib.sha256(repr(_FORMAT).encode())
    tensors: dict[str, Tensor] = {"": content} if isinstance(content, Tensor) else content.state_dict()
    if isinstance(content, nn.Module):
        digest.update(repr(content).encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()[:32]
