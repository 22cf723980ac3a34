"""Counter-based random numbers: the same for the same key and counter, in any process and in any order."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["choose_without_replacement", "uniforms"]

# A Philox key is (seed, stream). The streams are fixed for good: changing one changes every task that was ever drawn.
STREAMS = {"train": 0, "val": 1, "test": 2, "glyphs": 3, "omniglot_split": 4, "mini_batches": 5, "class_split": 6}
STREAMS |= {"task_order_0": 16, "task_order_1": 17}


def uniforms(seed: int, stream: str, numbers: Sequence[int], size: int, part: int = 0) -> NDArray[np.float64]:
    """Draw `size` uniform random numbers in [0, 1) for each of `numbers`.

    Row `i` depends on `(seed, stream, numbers[i], part)` alone, and its first entries do not depend on `size`. The
    generator is Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        seed: A non-negative integer below 2**64.
        stream: A key of `STREAMS`: `"train"`, `"val"`, `"test"`, ...
        numbers: Non-negative task (or class) numbers.
        size: How many random numbers each of them gets.
        part: Which random numbers of these numbers: 0 for what a task is, others for what happens in it.

    Returns:
        An array `(len(numbers), size)`.

    Example:
        >>> a = uniforms(0, "train", [7, 8], 3)
        >>> b = uniforms(0, "train", [8], 2)
        >>> bool((a[1, :2] == b[0]).all())
        True
    """
    bits = random_bits(seed, stream, numbers, size, part)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_bits(seed: int, stream: str, numbers: Sequence[int], size: int, part: int = 0) -> NDArray[np.uint64]:
    """The 64-bit words that `uniforms` makes its numbers of, `(len(numbers), size)`: seeds for generators of others."""
    bits = np.empty((len(numbers), size), dtype=np.uint64)
    generator = np.random.Philox(key=np.array([seed, STREAMS[stream]], dtype=np.uint64))
    state = generator.state
    for row, number in enumerate(numbers):
        # The second word of the counter is the number, the third the part; the first counts the draws within it.
        state["state"]["counter"] = np.array([0, number, part, 0], dtype=np.uint64)
        generator.state = state
        bits[row] = generator.random_raw(size)
    return bits


def choose_without_replacement(uniform: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn uniform numbers into distinct indices in random order.

    Args:
        uniform: `(..., m)` random numbers in [0, 1).
        sizes: `(...)` the number of things to choose from in each row, each at least `m`.

    Returns:
        `(..., m)` indices below `sizes`, distinct within a row; every ordered choice is equally likely.

    Example:
        >>> choose_without_replacement(np.array([[0.0, 0.0, 0.9]]), np.array([4]))
        array([[0, 1, 3]])
    """
    count = uniform.shape[-1]
    chosen = np.empty(uniform.shape, dtype=np.int64)
    for i in range(count):
        rank = (uniform[..., i] * (sizes - i)).astype(np.int64)
        # The rank-th of what is left lies behind every chosen index that has at most `rank` free ones before it.
        before = np.sort(chosen[..., :i], axis=-1) - np.arange(i)
        chosen[..., i] = rank + (before <= rank[..., None]).sum(axis=-1)
    return chosen


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """Let torch's random numbers (dropout's, say) follow from `numbers` alone; afterwards they go on as before.

    Args:
        device: Seeded besides the CPU.
        numbers: Non-negative integers, such as a seed, an outer step and a rank.

    Example:
        >>> with seeded(torch.device("cpu"), 0, 5):
        ...     first = torch.rand(1)
        >>> with seeded(torch.device("cpu"), 0, 5):
        ...     print(torch.equal(torch.rand(1), first))
        True
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    try:
        for generator in generators:
            generator.manual_seed(seed >> 1)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Whatever happens to the global generators within it, afterwards they go on as before."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])
        random.setstate(state[2])


def seed_all(*numbers: int) -> None:
    """Seed the global generators of torch (on the CPU), NumPy and Python by some non-negative integers.

    Example:
        >>> with global_state_kept():
        ...     seed_all(0, 7)
        ...     first = torch.rand(1), np.random.rand(), random.random()
        ...     seed_all(0, 7)
        ...     print((torch.rand(1), np.random.rand(), random.random()) == first)
        True
    """
    words = np.random.SeedSequence(numbers).generate_state(4)
    torch.default_generator.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    np.random.seed(words[2])
    random.seed(int(words[3]))


def global_state() -> dict[str, Any]:
    """The state of the global generators of torch (on the CPU), NumPy and Python, in plain types and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def set_global_state(state: dict[str, Any]) -> None:
    """Put the global generators into a state that `global_state` returned.

    Example:
        >>> state = global_state()
        >>> first = torch.rand(1), np.random.rand(), random.random()
        >>> set_global_state(state)
        >>> (torch.rand(1), np.random.rand(), random.random()) == first
        True
    """
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
