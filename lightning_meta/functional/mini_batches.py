"""Mini-batches of support sets, in an order that follows from numbers alone."""

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.randomness import uniforms
from lightning_meta.task import Examples, map_tensors, number_of_examples


def mini_batch(support: Examples, step: int, size: int, draw: int) -> Examples:
    """Mini-batch number `step` of support sets `(B, examples, ...)`.

    The examples are put in a random order again and again, and cut into mini-batches. The orders are the same for all
    tasks of a meta-batch that have equally many examples, and so on any number of devices: tasks have other classes and
    drawings at the same places, but a class that a mini-batch has little of is the same class number in all of them.

    Args:
        support: The support sets; of those with a mask only the real examples are drawn.
        step: The inner step.
        size: Examples in a mini-batch; a task with fewer has all of them in each.
        draw: Which orders, such as the number of the outer step.
    """
    count = number_of_examples(support)
    if support.mask is None:
        if size >= count:
            return support
        chosen = torch.from_numpy(_chosen(count, step, size, draw))
        return map_tensors(lambda t: t.index_select(1, chosen.to(t.device)), support)
    places, there = [], []
    for own in support.mask.cpu().numpy():
        real = np.flatnonzero(own)
        drawn = real if size >= len(real) else real[_chosen(len(real), step, size, draw)]
        there.append(np.arange(min(size, count)) < len(drawn))
        places.append(np.resize(drawn, min(size, count)) if len(drawn) else np.zeros(min(size, count), dtype=np.int64))
    chosen = torch.from_numpy(np.stack(places)).to(support.mask.device)
    examples = map_tensors(lambda t: t.take_along_dim(chosen.view(*chosen.shape, *(1,) * (t.dim() - 2)), 1), support)
    return examples._replace(mask=torch.from_numpy(np.stack(there)).to(support.mask.device))


def _chosen(count: int, step: int, size: int, draw: int) -> NDArray[np.int64]:
    """The places of a mini-batch among `count` examples."""
    places = np.arange(step * size, (step + 1) * size)
    passes = np.unique(places // count)
    orders = np.argsort(uniforms(draw, "mini_batches", passes.tolist(), count), axis=1)
    found: NDArray[np.int64] = np.concatenate(list(orders))[places - passes[0] * count]
    return found
