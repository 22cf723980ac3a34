"""What an outer step would take if the machine did nothing but its multiplications, and those as fast as it can."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

SIZE = 512
"""Rows and columns of the matrix that all is multiplied with: of this size a processor is at its best."""
MOST_ROWS = 8192


def operations(step: Callable[[], None]) -> int:
    """How many additions and multiplications the convolutions and products of matrices of a step are."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def products(count: int, like: Tensor) -> Callable[[], None]:
    """So many additions and multiplications as products of large matrices, of a tensor's type and on its device."""
    rows = count / (2 * SIZE**2)
    parts = max(1, round(rows / MOST_ROWS))
    each = max(1, round(rows / parts))
    left, right = like.new_ones(each, SIZE), like.new_ones(SIZE, SIZE)
    into = like.new_empty(each, SIZE)

    def step() -> None:
        for _ in range(parts):
            torch.mm(left, right, out=into)

    return step
