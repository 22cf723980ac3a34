"""Labelled data held as one tensor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_meta.errors import ConfigurationError


class ClassDataset(Dataset[tuple[Tensor, int]]):
    """Examples of many classes, all in one tensor, so that a whole meta-batch is gathered in one step.

    Args:
        inputs: `(examples, ...)`. uint8 inputs stay uint8 here.
        targets: The class number of each example, `(examples,)`.
        classes: The name of each class number, if classes have names. Splits that share a name are refused.
        scale: What uint8 inputs are multiplied by when they become float32 on the device. If `None`, it is 1/255 for
            images, which are uint8 inputs `(examples, C, H, W)` with 1 or 3 channels; all other inputs stay as they
            are.

    Attributes:
        scale: The factor; `None` where inputs stay as they are.
        key: What tells the inputs from all others, in the names of cached files; of their bytes where it is `None`.

    Raises:
        ConfigurationError: Lengths differ, targets are not integers, a target has no name, or `scale` is not positive
            or not for uint8.

    Example:
        >>> data = ClassDataset(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), [0, 0, 1, 1])
        >>> len(data), data[3][1], data.scale == 1 / 255
        (4, 1, True)
        >>> print(ClassDataset(torch.zeros(4, 64, dtype=torch.uint8), [0, 0, 1, 1]).scale)
        None
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Sequence[int] | Tensor,
        classes: Sequence[str] | None = None,
        scale: float | None = None,
    ) -> None:
        self.targets = torch.as_tensor(targets)
        if self.targets.is_floating_point() or self.targets.dim() != 1:
            raise ConfigurationError(
                f"targets must be one integer for each example, got {tuple(self.targets.shape)} {self.targets.dtype}."
            )
        if len(inputs) != len(self.targets):
            raise ConfigurationError(f"There are {len(inputs)} inputs but {len(self.targets)} targets.")
        if classes is not None and len(self.targets) and int(self.targets.max()) >= len(classes):
            raise ConfigurationError(f"Target {int(self.targets.max())} has no name: there are {len(classes)} classes.")
        if scale is not None and not (math.isfinite(scale) and scale > 0 and inputs.dtype == torch.uint8):
            raise ConfigurationError(
                f"scale must be a positive number, for inputs of torch.uint8, got {scale} for {inputs.dtype}."
            )
        self.inputs = inputs
        self.key: str | None = None
        self.classes = None if classes is None else list(classes)
        self.scale = image_scale(inputs) if scale is None else scale

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.targets[index])


def image_scale(inputs: Tensor) -> float | None:
    """1/255 for images, which are uint8 tensors `(examples, C, H, W)` with 1 or 3 channels; `None` for all others."""
    images = inputs.dtype == torch.uint8 and inputs.dim() == 4 and inputs.shape[1] in (1, 3)
    return 1 / 255 if images else None
