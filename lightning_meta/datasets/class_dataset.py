"""Labelled data held as tensors of all examples."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.task import foreign_value, map_tensors, tensors_of, with_dicts


class ClassDataset(Dataset[tuple[Any, int]]):
    """Examples of many classes, all in one tensor or a few, so that a whole meta-batch is gathered in one step.

    Args:
        inputs: A tensor `(examples, ...)`, or any nesting of dicts, lists and tuples of such tensors for a network
            that takes several. Other mappings become dicts. uint8 inputs stay uint8 here.
        targets: The class number of each example, `(examples,)`.
        classes: The name of each class number, if classes have names. Splits that share a name are refused.
        scale: What uint8 inputs are multiplied by when they become float32 on the device. If `None`, it is 1/255 for
            images, which are uint8 inputs `(examples, C, H, W)` with 1 or 3 channels; all other inputs, and nestings,
            stay as they are.

    Attributes:
        scale: The factor; `None` where inputs stay as they are.
        key: What tells the inputs from all others, in the names of cached files; of their bytes where it is `None`.

    Raises:
        ArgumentTypeError: Something among the inputs is no tensor, or there is none.
        ConfigurationError: Lengths differ, targets are not integers, a target has no name, or `scale` is not positive
            or not for uint8.

    Example:
        >>> data = ClassDataset(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), [0, 0, 1, 1])
        >>> len(data), data[3][1], data.scale == 1 / 255
        (4, 1, True)
        >>> print(ClassDataset(torch.zeros(4, 64, dtype=torch.uint8), [0, 0, 1, 1]).scale)
        None
        >>> words = ClassDataset({"ids": torch.zeros(4, 9), "length": torch.full((4,), 9)}, [0, 0, 1, 1])
        >>> words[2]
        ({'ids': tensor([0., 0., 0., 0., 0., 0., 0., 0., 0.]), 'length': tensor(9)}, 1)
    """

    def __init__(
        self,
        inputs: Any,
        targets: Sequence[int] | Tensor,
        classes: Sequence[str] | None = None,
        scale: float | None = None,
    ) -> None:
        self.targets = torch.as_tensor(targets)
        if self.targets.is_floating_point() or self.targets.dim() != 1:
            raise ConfigurationError(
                f"targets must be one integer for each example, got {tuple(self.targets.shape)} {self.targets.dtype}."
            )
        self.inputs = with_dicts(inputs)
        _check_inputs(self.inputs, len(self.targets))
        if classes is not None and len(self.targets) and int(self.targets.max()) >= len(classes):
            raise ConfigurationError(f"Target {int(self.targets.max())} has no name: there are {len(classes)} classes.")
        kind = str(self.inputs.dtype) if isinstance(self.inputs, Tensor) else f"a {type(self.inputs).__name__}"
        if scale is not None and not (math.isfinite(scale) and scale > 0 and kind == "torch.uint8"):
            raise ConfigurationError(
                f"scale must be a positive number, for inputs of torch.uint8, got {scale} for {kind}."
            )
        self.key: str | None = None
        self.classes = None if classes is None else list(classes)
        self.scale = scale
        if scale is None and isinstance(self.inputs, Tensor):
            self.scale = image_scale(self.inputs)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return map_tensors(lambda tensor: tensor[index], self.inputs), int(self.targets[index])


def _check_inputs(inputs: Any, count: int) -> None:
    """Refuse inputs that are not tensors with one entry for each example."""
    foreign = foreign_value(inputs, "inputs")
    if foreign is not None:
        raise ArgumentTypeError(
            f"inputs must be a tensor, or dicts, lists and tuples of tensors, but there is {foreign}. Encode it as a "
            "tensor, or leave it out."
        )
    tensors = tensors_of(inputs)
    if not tensors:
        raise ArgumentTypeError(f"inputs must hold at least one tensor, got {inputs!r}.")
    lengths = sorted({len(tensor) if tensor.dim() else 0 for tensor in tensors})
    if lengths != [count]:
        found = " and ".join(map(str, lengths))
        raise ConfigurationError(
            f"There are {found} inputs but {count} targets."
            + ("" if isinstance(inputs, Tensor) else " Every tensor needs one entry for each example.")
        )


def image_scale(inputs: Tensor) -> float | None:
    """1/255 for images, which are uint8 tensors `(examples, C, H, W)` with 1 or 3 channels; `None` for all others."""
    images = inputs.dtype == torch.uint8 and inputs.dim() == 4 and inputs.shape[1] in (1, 3)
    return 1 / 255 if images else None
