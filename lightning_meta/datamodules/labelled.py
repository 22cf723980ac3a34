"""Labelled data sets: their class numbers and names, and reading examples of them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_meta.datamodules.sampling import Integers, Places
from lightning_meta.datasets.class_dataset import ClassDataset, image_scale
from lightning_meta.errors import ArgumentTypeError, ConfigurationError, DataError
from lightning_meta.randomness import STREAMS, global_state_kept, seed_all
from lightning_meta.task import Task, foreign_value, map_tensors, tensors_of

SameNames = Literal["refuse", "different"]
"""What classes of one name in the data sets of two splits are: an error, or different classes."""


class Reader:
    """Reads the inputs of examples: in one step where a data set holds all of them as tensors, else one by one.

    Args:
        dataset: A map-style data set.
        split: What to call it in errors.
        collate: Stacks the inputs of examples that were read one by one.
        seed: What random transforms follow from, with the split, the task and the example.
    """

    def __init__(self, dataset: Dataset[Any], split: str, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.dataset = dataset
        self.split = split
        self.seed = seed
        self.collate = collate
        self._held = _as_tensors(dataset)

    def to(self, device: torch.device) -> "Reader":
        """One with the data on a device; itself where that is so, or where the data is no tensor or too large."""
        if self._held is None:
            return self
        tensors = tensors_of(self._held[0])
        if all(tensor.device == device for tensor in tensors):
            return self
        if device.type == "cuda" and sum(t.nbytes for t in tensors) > torch.cuda.mem_get_info(device)[0] / 4:
            return self
        inputs, positions = self._held
        moved = copy.copy(self)
        moved._held = map_tensors(lambda tensor: tensor.to(device), inputs), positions
        return moved

    def read(self, parts: Sequence[Places], numbers: Sequence[int]) -> list[Any]:
        """The inputs of all examples that there are, `(examples, ...)`, task by task, for each part.

        A random transform of an example that is read by itself follows from seed, split, task, part and example.

        Args:
            parts: The support and the query sets of tasks.
            numbers: The tasks' numbers.

        Raises:
            DataError: An example cannot be read.
            ArgumentTypeError: Examples are not pairs of input and target, or their inputs cannot be stacked.
        """
        if self._held is not None:
            return [self._gathered(part.real, *self._held) for part in parts]
        tasks = np.asarray(numbers, dtype=np.int64)[:, None]
        inputs, ends = [], []
        with global_state_kept():
            for which, part in enumerate(parts):
                of = part._replace(found=np.broadcast_to(tasks, part.found.shape)).real
                for number, position in zip(of.tolist(), part.real.tolist(), strict=True):
                    seed_all(self.seed, STREAMS[self.split], number, which, position)
                    inputs.append(self._input(position))
                ends.append(len(inputs))
        every = self._stacked(inputs)
        return [_rows(every, start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _gathered(self, positions: Integers, inputs: Any, where: Integers) -> Any:
        chosen = torch.from_numpy(np.ascontiguousarray(where[positions]))
        if isinstance(inputs, Tensor):
            return inputs.index_select(0, chosen.to(inputs.device, non_blocking=True))
        chosen = chosen.to(tensors_of(inputs)[0].device, non_blocking=True)
        return map_tensors(lambda tensor: tensor.index_select(0, chosen), inputs)

    def _input(self, position: int) -> Any:
        try:
            example = self.dataset[position]
        except Exception as error:
            path = path_of(self.dataset, position)
            which = f"example {position} of the data set" + (f", {path}," if path else "")
            raise DataError(f"{self.split}: {which} cannot be read: {error}") from error
        if not isinstance(example, tuple | list) or len(example) < 2:
            raise ArgumentTypeError(
                f"{self.split}: example {position} of {type(self.dataset).__name__} is a {type(example).__name__}. "
                "A data set must return (input, target)."
            )
        return example[0]

    def _stacked(self, inputs: list[Any]) -> Any:
        kind = type(inputs[0]).__name__
        try:
            stacked = self.collate(inputs)
        except (TypeError, RuntimeError) as error:
            raise ArgumentTypeError(
                f"{self.split}: inputs of type {kind} cannot be stacked: {error}. Give the data set "
                "a transform that makes tensors of one size, such as torchvision.transforms.ToTensor() after a Resize, "
                "or override collate in the data module."
            ) from error
        foreign = foreign_value(stacked, "inputs")
        if foreign is not None:
            raise ArgumentTypeError(
                f"{self.split}: only tensors can be divided among the tasks, but an example has {foreign}. Leave it "
                "out in the data set or in the data module's collate, or encode it there as a tensor."
            )
        lengths = sorted({len(tensor) if tensor.dim() else 0 for tensor in tensors_of(stacked)})
        if lengths != [len(inputs)]:
            raise ArgumentTypeError(
                f"{self.split}: inputs of type {kind} must be stacked to tensors with one entry for each of the "
                f"{len(inputs)} examples, but collate returned {f'{lengths} entries' if lengths else 'no tensor'}."
            )
        return stacked


def base_of(dataset: Dataset[Any]) -> Dataset[Any]:
    """The data set that a `Subset` (of a `Subset`) was taken from."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def path_of(dataset: Any, position: int) -> str | None:
    """The file of an example, where the data set has a list of them as `samples`, as torchvision's folders do."""
    while isinstance(dataset, Subset):
        dataset, position = dataset.dataset, dataset.indices[position]
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, Sequence) or position >= len(samples):
        return None
    sample = samples[position]
    path = sample[0] if isinstance(sample, tuple | list) and sample else sample
    return str(path) if isinstance(path, str | PathLike) else None


def targets_of(dataset: Dataset[Any], split: str) -> Integers:
    """The class number of every example.

    Raises:
        ConfigurationError: There is no sequence of integers `targets`, or it is not as long as the data set.
    """
    if isinstance(dataset, Subset):
        return targets_of(dataset.dataset, split)[np.asarray(dataset.indices, dtype=np.int64)]
    if not hasattr(dataset, "targets") or not hasattr(dataset, "__len__"):
        raise ConfigurationError(
            f"{split}: {type(dataset).__name__} has no length or no attribute `targets`. Set it to the class number of "
            "every example, or wrap the data in lightning_meta.datasets.ClassDataset."
        )
    targets = dataset.targets
    transform = getattr(dataset, "target_transform", None)
    if transform is not None:  # classes are those that the data set returns
        targets = [int(transform(target)) for target in targets]
    targets = np.asarray(targets)
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise ConfigurationError(
            f"{split}: the targets of {type(dataset).__name__} must be one integer for each example, got an array "
            f"{targets.shape} of {targets.dtype}. Number the classes from 0."
        )
    if len(targets) != len(dataset):
        raise ConfigurationError(
            f"{split}: {type(dataset).__name__} has {len(dataset)} examples but {len(targets)} targets."
        )
    return targets.astype(np.int64)


def check_disjoint(datasets: Mapping[str, Dataset[Any]], *, same_names: SameNames = "refuse") -> None:
    """Refuse splits that share classes.

    Classes are the same where two splits come from one data set object and share a class number, or where both name
    their classes (`classes`) and share a name. Class numbers of different data sets are their own.

    Args:
        datasets: The data set of each split.
        same_names: Whether classes of one name in different data sets are `"different"` ones.

    Raises:
        ConfigurationError: Two splits share a class.
    """
    labels = {split: np.unique(targets_of(dataset, split)) for split, dataset in datasets.items()}
    for one, other in combinations(datasets, 2):
        remedy, shared = "", []
        if base_of(datasets[one]) is base_of(datasets[other]):
            shared = [class_name(datasets[one], label) for label in np.intersect1d(labels[one], labels[other])]
        elif same_names == "refuse":
            shared = sorted(_names(datasets[one], labels[one]) & _names(datasets[other], labels[other]))
            remedy = " Where equal names are other classes in each split, give same_names='different'."
        if shared:
            listed = ", ".join(shared[:5]) + (f", and {len(shared) - 5} more" if len(shared) > 5 else "")
            raise ConfigurationError(
                f"The {one} and {other} splits share classes: {listed}. Few-shot evaluation is on classes never "
                f"trained on: divide the classes, for instance with torch.utils.data.Subset.{remedy}"
            )


def scale_inputs(tasks: Task, dataset: Dataset[Any] | None) -> Task:
    """Turn uint8 inputs that are one tensor into float32, times the `scale` of the data set that they come from.

    A data set without that attribute has images where `lightning_meta.datasets.image_scale` says so.

    Args:
        tasks: A batch of tasks.
        dataset: Where its inputs come from, if that is known.

    Raises:
        ArgumentTypeError: `scale` is neither a number nor `None`.
    """
    support, query = (part._replace(inputs=scaled(part.inputs, dataset, examples_dims=2)) for part in tasks)
    return Task(support, query)


def scaled(inputs: Any, dataset: Dataset[Any] | None, examples_dims: int = 1) -> Any:
    """What `scale_inputs` makes of inputs whose first `examples_dims` dimensions count examples.

    Raises:
        ArgumentTypeError: `scale` is neither a number nor `None`.
    """
    if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8:
        return inputs
    base = None if dataset is None else base_of(dataset)
    scale = getattr(base, "scale", image_scale(inputs.flatten(0, examples_dims - 1)))
    if not isinstance(scale, int | float | None):
        raise ArgumentTypeError(f"{type(base).__name__}.scale must be a number or None, got {scale!r}.")
    # Divided, so that a byte / 255 is rounded once.
    return inputs if scale is None else inputs.float().div_(1 / scale)


def class_name(dataset: Dataset[Any], label: int) -> str:
    """The name of a class, or its number where it has none."""
    classes = getattr(base_of(dataset), "classes", None)
    return str(classes[label]) if classes is not None and label < len(classes) else str(label)


def _rows(tree: Any, start: int, end: int) -> Any:
    return map_tensors(lambda tensor: tensor[start:end], tree)


def _names(dataset: Dataset[Any], labels: Integers) -> set[str]:
    """The names of these classes; none where classes have numbers only."""
    if getattr(base_of(dataset), "classes", None) is None:
        return set()
    return {class_name(dataset, label) for label in labels}


def _as_tensors(dataset: Dataset[Any]) -> tuple[Any, Integers] | None:
    """The data as tensors of all examples, and where each lies in them; `None` if only `__getitem__` knows."""
    base = base_of(dataset)
    if isinstance(base, ClassDataset) and type(base).__getitem__ is ClassDataset.__getitem__:
        inputs, count = base.inputs, len(base)
    elif isinstance(base, TensorDataset) and type(base).__getitem__ is TensorDataset.__getitem__:
        inputs, count = base.tensors[0], len(base)
    else:
        return None
    positions = np.arange(count)
    chain: list[Subset[Any]] = []
    while isinstance(dataset, Subset):
        if type(dataset).__getitem__ is not Subset.__getitem__:
            return None
        chain.append(dataset)
        dataset = dataset.dataset
    for subset in reversed(chain):
        positions = positions[np.asarray(subset.indices, dtype=np.int64)]
    return inputs, positions
