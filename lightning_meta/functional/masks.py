"""Tasks of different sizes in one batch: what is padding, and what each task has."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_meta.task import Examples, first_tensor, map_tensors


def filled(examples: Examples) -> Examples:
    """The same examples, with a copy of each task's first real one where there is padding.

    So whatever a network computes of padding is finite where it is finite for the task, and has no effect once it is
    masked: zero times infinity would have one.

    Args:
        examples: A batch; those without a mask are returned as they are.
    """
    mask = examples.mask
    if mask is None:
        return examples
    places = torch.arange(mask.shape[1], device=mask.device)
    chosen = torch.where(mask, places, mask.to(torch.uint8).argmax(1, keepdim=True))

    def fill(tensor: Tensor) -> Tensor:
        return tensor.take_along_dim(chosen.view(*chosen.shape, *(1,) * (tensor.dim() - 2)), 1)

    return Examples(map_tensors(fill, examples.inputs), map_tensors(fill, examples.targets), mask)


def joint_mask(*parts: Examples) -> Tensor | None:
    """Which examples there are of several sets in a row, `(B, examples of all)`; `None` where no set has a mask."""
    if all(part.mask is None for part in parts):
        return None
    masks = []
    for part in parts:
        first = first_tensor(part.inputs)
        masks.append(first.new_ones(first.shape[:2], dtype=torch.bool) if part.mask is None else part.mask)
    return torch.cat(masks, 1)


def like(mask: Tensor, values: Tensor) -> Tensor:
    """A mask `(B, examples)` for values `(B, examples, ...)`, of their shape."""
    return mask.view(*mask.shape, *(1,) * (values.dim() - 2)).expand_as(values)


def masked_mean(values: Tensor, counts: Tensor) -> Tensor:
    """The mean of each task's values `(B, examples, ...)` over those that count, a mask of their shape: `(B,)`."""
    return torch.where(counts, values, 0).flatten(1).sum(1) / counts.flatten(1).sum(1)


def real_parts(mask: Tensor, *trees: Any) -> Iterator[tuple[Any, ...]]:
    """Each task's own, without its padding: trees of tensors `(examples of that task, ...)`."""
    for b, own in enumerate(mask):
        yield tuple(map_tensors(lambda t, b=b, own=own: t[b][own], tree) for tree in trees)
