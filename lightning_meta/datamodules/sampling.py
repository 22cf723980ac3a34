"""Which classes and examples a task has: pure functions of the seed, the stream and the task's number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lightning_meta.datamodules.arguments import Range, bounds, check_number, check_range, check_sampling
from lightning_meta.randomness import choose_without_replacement, uniforms

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Booleans: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Shape:
    """How many classes and examples tasks have.

    Attributes:
        n_way: Classes of a task, or their range.
        k_shot: Support examples of each class, or their range.
        n_query: Query examples of each class.
        balanced: Whether all classes of a task have the same number of support examples.

    Raises:
        ArgumentTypeError: Something is neither a whole number nor a range.
        ConfigurationError: A number or a range is out of bounds.
    """

    n_way: Range
    k_shot: Range
    n_query: int
    balanced: bool = True

    def __post_init__(self) -> None:
        check_range("n_way", self.n_way)
        check_range("k_shot", self.k_shot)
        check_number("n_query", self.n_query)
        check_sampling(self.balanced, None)

    @property
    def fixed(self) -> bool:
        """Whether every task has the same numbers, from classes that are large enough."""
        return type(self.n_way) is int and type(self.k_shot) is int and self.balanced

    @property
    def ways(self) -> tuple[int, int]:
        """The smallest and the largest number of classes."""
        return bounds(self.n_way)

    @property
    def shots(self) -> tuple[int, int]:
        """The smallest and the largest number of support examples of a class; from 1 on where they are unequal."""
        return (1, self.k_shot) if not self.balanced and isinstance(self.k_shot, int) else bounds(self.k_shot)

    @property
    def needed(self) -> int:
        """The most examples that a task takes of a class."""
        return self.shots[1] + self.n_query


class Draw(NamedTuple):
    """What was drawn for `B` tasks of up to `N` classes, with up to `M` examples of each.

    Attributes:
        classes: Which of the data set's classes, `(B, N)`.
        within: Which examples of each class, `(B, N, M)`: first those of the support, then those of the query set.
            After them come zeros.
        shots: How many of them are for the support set, `(B, N)`; 0 where a task has no such class.
        queries: How many are for the query set, `(B, N)`.
    """

    classes: Integers
    within: Integers
    shots: Integers
    queries: Integers


class Places(NamedTuple):
    """Where the examples of the support or the query set of `B` tasks come from.

    Attributes:
        found: Positions in the data set, `(B, S)`, class by class; what stands in the padding means nothing.
        labels: The class of each within its task, `(B, S)`, from 0 on; 0 in the padding.
        mask: Which of them there are, `(B, S)`, the padding last; all of them if `None`.
    """

    found: Integers
    labels: Integers
    mask: Booleans | None = None

    @property
    def real(self) -> Integers:
        """The positions of all examples that there are, in one row, task by task."""
        return self.found.reshape(-1) if self.mask is None else self.found[self.mask]


def draw_fixed(shape: Shape, sizes: Integers, seed: int, stream: str, numbers: Sequence[int]) -> Draw:
    """Draw tasks of one way and one shot.

    Args:
        shape: It has no ranges.
        sizes: How many examples each class of the data set has, `(classes,)`, each at least `shape.needed`.
        seed: Which streams.
        stream: A key of `lightning_meta.randomness.STREAMS`.
        numbers: `B` task numbers.
    """
    (n, _), (k, _), m = shape.ways, shape.shots, shape.needed
    random = uniforms(seed, stream, numbers, n * (1 + m))
    classes = choose_without_replacement(random[:, :n], np.full(len(random), len(sizes)))
    within = choose_without_replacement(random[:, n:].reshape(-1, n, m), sizes[classes])
    return Draw(classes, within, np.full(classes.shape, k), np.full(classes.shape, m - k))


def draw_varied(shape: Shape, sizes: Integers, seed: int, stream: str, numbers: Sequence[int]) -> Draw:
    """Draw tasks of different sizes: way and shot uniformly from their ranges, for each task.

    A class that has fewer than `k + n_query` examples, where `k` is the shot drawn, gives `min(k, size - 1)` to the
    support set and as many of the others to the query set as there are, up to `n_query`. `unequal_shots` says what
    tasks that are not balanced have.

    Args:
        shape: Ranges, or numbers.
        sizes: How many examples each class of the data set has, `(classes,)`, each at least 2.
        seed: Which streams.
        stream: A key of `lightning_meta.randomness.STREAMS`.
        numbers: `B` task numbers.
    """
    most, m = shape.ways[1], shape.needed
    random = uniforms(seed, stream, numbers, 2 + most * (2 + m))
    ways = _between(random[:, 0], shape.ways)
    classes = choose_without_replacement(random[:, 2 : 2 + most], np.full(len(random), len(sizes)))
    there = np.arange(most) < ways[:, None]
    have = np.where(there, sizes[classes], 0)
    if shape.balanced:
        shots = np.minimum(_between(random[:, 1], shape.shots)[:, None], have - 1)
        queries = np.minimum(shape.n_query, have - shots)
    else:
        alpha = np.log(0.5) + (np.log(2) - np.log(0.5)) * random[:, 2 + most : 2 + 2 * most]
        shots, queries = unequal_shots(have, 1 - random[:, 1], alpha, shape.shots, shape.n_query)
    shots, queries = np.where(there, shots, 0), np.where(there, queries, 0)
    # Later random numbers have no effect on earlier choices, so what this batch does not need can be left out.
    n, m = int(ways.max(initial=0)), int((shots + queries).max(initial=0))
    of_examples = random[:, 2 + 2 * most :].reshape(len(random), most, -1)[:, :n, :m]
    within = choose_without_replacement(of_examples, have[:, :n])
    taken = np.arange(m) < (shots + queries)[:, :n, None]
    return Draw(classes[:, :n], np.where(taken, within, 0), shots[:, :n], queries[:, :n])


def unequal_shots(
    sizes: Integers, beta: Floats, alpha: Floats, shots: tuple[int, int], n_query: int
) -> tuple[Integers, Integers]:
    r"""Support and query examples of each class as in Meta-Dataset, where support sets are as unequal as the classes.

    With classes of :math:`s_c` examples,

    .. math::
        q &= \max(1, \min(n_\text{query}, \lfloor \min_c s_c / 2 \rfloor)) \\
        |S| &= \sum_c \lceil \beta \min(K_\max, s_c - q) \rceil \\
        R_c &= e^{\alpha_c} s_c / \textstyle\sum_{c'} e^{\alpha_{c'}} s_{c'} \\
        k_c &= \min(\lfloor R_c \max(0, |S| - N K_\min) \rfloor + K_\min, K_\max, s_c - q).

    Paper: Triantafillou et al. 2020, arXiv:1903.03096, section 3 and appendix, with β uniform in (0, 1] and α in
    [log 0.5, log 2). There K_min is 1, K_max is 100 in the sum alone and n_query is 10. Here K_max bounds each class's
    shot as well, and there is no bound of 500 on :math:`|S|`.

    Args:
        sizes: :math:`s_c`, `(B, N)`; 0 where a task has no such class, at least 2 elsewhere.
        beta: β, `(B,)`.
        alpha: α, `(B, N)`.
        shots: K_min and K_max.
        n_query: The most query examples of a class.

    Returns:
        Shots :math:`k_c` and queries :math:`q`, each `(B, N)`; they mean nothing where there is no class.
    """
    least, most = shots
    there = sizes > 0
    smallest = np.where(there, sizes, np.iinfo(np.int64).max).min(-1, keepdims=True)
    queries = np.clip(smallest // 2, 1, n_query)
    left = sizes - queries
    total = np.where(there, np.ceil(beta[:, None] * np.minimum(most, left)), 0).sum(-1, keepdims=True)
    weights = np.exp(alpha) * sizes
    beyond = np.maximum(total - least * there.sum(-1, keepdims=True), 0)
    shares = weights / weights.sum(-1, keepdims=True)
    drawn = np.floor(shares * beyond).astype(np.int64) + least
    return np.minimum(np.minimum(drawn, most), left), np.broadcast_to(queries, sizes.shape)


def places_fixed(positions: Integers, k_shot: int) -> tuple[Places, Places]:
    """Lay out support and query sets of tasks of one size, class by class.

    Args:
        positions: Where the examples lie in the data set, `(B, N, K + Q)`.
        k_shot: `K`.
    """

    def laid_out(part: Integers) -> Places:
        batch, n, each = part.shape
        return Places(part.reshape(batch, -1), np.tile(np.repeat(np.arange(n), each), (batch, 1)))

    return laid_out(positions[..., :k_shot]), laid_out(positions[..., k_shot:])


def places_varied(draw: Draw, positions: Integers) -> tuple[Places, Places]:
    """Lay out support and query sets of tasks of different sizes: class by class, the padding of smaller tasks last.

    Args:
        draw: What was drawn.
        positions: Where its examples lie in the data set, `(B, N, M)`.
    """
    slot = np.arange(positions.shape[2])
    shots, queries = draw.shots[..., None], draw.queries[..., None]
    labels = np.broadcast_to(np.arange(positions.shape[1])[:, None], positions.shape)

    def laid_out(chosen: Booleans) -> Places:
        chosen = chosen.reshape(len(chosen), -1)
        order = np.argsort(~chosen, axis=1, kind="stable")[:, : chosen.sum(1).max(initial=0)]
        found, classes, mask = (
            np.take_along_axis(each.reshape(chosen.shape), order, axis=1) for each in (positions, labels, chosen)
        )
        return Places(found, np.where(mask, classes, 0), mask)

    return laid_out(slot < shots), laid_out((slot >= shots) & (slot < shots + queries))


def _between(uniform: Floats, span: tuple[int, int]) -> Integers:
    """Whole numbers of a range, each as likely as the others, from uniform numbers in [0, 1)."""
    least, most = span
    return least + (uniform * (most - least + 1)).astype(np.int64)
