"""Labelled data held as one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ClassDataset(Dataset[tuple[Tensor, int]]):
    """Examples of many classes, all in one tensor, so that a whole meta-batch is gathered in one step.

    Args:
        inputs: `(examples, ...)`. uint8 images stay uint8 here.
        targets: The class number of each example, `(examples,)`.
        classes: The name of each class number, if classes have names. Splits that share a name are refused.

    Raises:
        ValueError: Lengths differ, targets are not integers, or a target has no name.

    Example:
        >>> data = ClassDataset(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), [0, 0, 1, 1])
        >>> len(data), data[3][1]
        (4, 1)
    """

    def __init__(self, inputs: Tensor, targets: Sequence[int] | Tensor, classes: Sequence[str] | None = None) -> None:
        self.targets = torch.as_tensor(targets)
        if self.targets.is_floating_point() or self.targets.dim() != 1:
            raise ValueError(
                f"targets must be one integer for each example, got {tuple(self.targets.shape)} {self.targets.dtype}."
            )
        if len(inputs) != len(self.targets):
            raise ValueError(f"There are {len(inputs)} inputs but {len(self.targets)} targets.")
        if classes is not None and len(self.targets) and int(self.targets.max()) >= len(classes):
            raise ValueError(f"Target {int(self.targets.max())} has no name: there are {len(classes)} classes.")
        self.inputs = inputs
        self.classes = None if classes is None else list(classes)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.targets[index])
