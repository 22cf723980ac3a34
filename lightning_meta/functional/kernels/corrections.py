"""Functions of torch whose derivatives are wrong or missing, in plain operators: with these any derivative is right.

In torch 2.14, `torch.vmap` drops `padding_idx` of an embedding, the second derivative of `scale_grad_by_freq` leaves
out the scale, that of weight normalization is wrong on a CPU, that of normalizing zeros is not a number, and embedding
bags and the hard sigmoid have none. What spectral norms call does not run under `torch.vmap`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Surroundings(Protocol):
    """What a correction is told of the run of a network.

    Attributes:
        mask: Which of a task's examples there are, `(examples,)`; all if `None`.
    """

    mask: Tensor | None

    def check_write(self, tensor: Tensor) -> None:
        """To be called with a weight that is about to be written into."""


@torch.no_grad()
def _renormalize(input: Tensor, weight: Tensor, max_norm: float, norm_type: float) -> None:
    """Shorten the embeddings `weight[input]` to `max_norm` in place, where they are longer."""
    used = torch.zeros_like(weight[:, 0]).index_fill(0, input.flatten(), 1) > 0
    lengths = torch.linalg.vector_norm(weight, norm_type, 1)
    factor = torch.where(used & (lengths > max_norm), max_norm / (lengths + 1e-7), 1)
    weight.mul_(factor.unsqueeze(1))


def _rows(
    run: Surroundings, input: Tensor, weight: Tensor, padding_idx: int | None, scale_grad_by_freq: bool
) -> Tensor:
    """`weight[input]`, with the gradient that an embedding's options ask for."""
    found = F.embedding(input, weight)
    if padding_idx is not None:
        is_padding = input == (padding_idx if padding_idx >= 0 else len(weight) + padding_idx)
        found = torch.where(is_padding.unsqueeze(-1), found.detach(), found)
    if scale_grad_by_freq:
        own = input.flatten()
        alike = own.unsqueeze(0) == own.unsqueeze(1)
        if run.mask is not None and len(run.mask) == len(input):  # words of padding do not count
            alike = alike & run.mask.repeat_interleave(own.numel() // len(input))
        counts = alike.sum(1).clamp(min=1).view(input.shape).unsqueeze(-1)
        constant = found.detach()
        found = constant + (found - constant) / counts
    return found


def _embedding(
    run: Surroundings, input: Tensor, weight: Tensor, padding_idx: int | None = None,
    max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor | None:  # fmt: skip
    """An embedding; those that are asked for are shortened to `max_norm` first, in the weights."""
    if max_norm is not None:
        run.check_write(weight)
        _renormalize(input, weight, max_norm, norm_type)
    elif padding_idx is None and not scale_grad_by_freq and not sparse:
        return None
    return _rows(run, input, weight, padding_idx, scale_grad_by_freq)


def _embedding_bag(
    run: Surroundings, input: Tensor, weight: Tensor, offsets: Tensor | None = None,
    max_norm: float | None = None, norm_type: float = 2, scale_grad_by_freq: bool = False, mode: str = "mean",
    sparse: bool = False, per_sample_weights: Tensor | None = None, include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor | None:  # fmt: skip
    """The sum, mean or maximum of bags of embeddings, `(bags, entries)`; of bags of different sizes it is torch's."""
    if max_norm is not None:
        run.check_write(weight)
    if input.dim() != 2 or (scale_grad_by_freq and mode == "max"):
        return None
    if max_norm is not None:
        _renormalize(input, weight, max_norm, norm_type)
    each = _rows(run, input, weight, padding_idx, scale_grad_by_freq)
    if per_sample_weights is not None:
        each = each * per_sample_weights.unsqueeze(-1)
    if padding_idx is None:
        counts = torch.ones_like(input, dtype=torch.bool).unsqueeze(-1)
    else:
        counts = (input != (padding_idx if padding_idx >= 0 else len(weight) + padding_idx)).unsqueeze(-1)
    if mode == "max":
        largest = each.masked_fill(~counts, -torch.inf).amax(1)
        return torch.where(counts.any(1), largest, 0)
    total = torch.where(counts, each, 0).sum(1)
    return total / counts.sum(1).clamp(min=1) if mode == "mean" else total


def _weight_norm(_: Surroundings, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Weights of the directions v and the lengths g."""
    dims = [d for d in range(v.dim()) if d != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    lengths: Tensor = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    return v * (g / lengths)


def _hardsigmoid(_: Surroundings, input: Tensor, inplace: bool = False) -> Tensor:
    """The hard sigmoid."""
    found = F.relu6(input + 3) / 6
    return input.copy_(found) if inplace else found


def _normalize(
    _: Surroundings, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor | None:
    """Vectors x of length 1, or x / eps where they are shorter than eps, with finite derivatives at 0 too."""
    if p != 2 or input.dtype not in (torch.float32, torch.float64):
        return None if out is None else out.copy_(F.normalize(input, p, dim, eps))
    squares = input.square().sum(dim, keepdim=True)
    is_short = squares <= eps**2
    found = input / torch.where(is_short, eps, torch.where(is_short, 1, squares).sqrt())
    return found if out is None else out.copy_(found)


CORRECTIONS: dict[Any, Callable[..., Tensor | None]] = {
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    torch._weight_norm: _weight_norm,
    F.hardsigmoid: _hardsigmoid,
    F.normalize: _normalize,
}
"""By function of torch; `None` is returned for what torch is right about."""
