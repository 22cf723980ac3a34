"""Transforms of the examples of tasks: of whole batches where nothing is random, else seeded example by example."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_meta.datamodules.sampling import Places
from lightning_meta.errors import ArgumentTypeError, DataError, first_line
from lightning_meta.randomness import STREAMS, global_state_kept, seed_all
from lightning_meta.task import first_tensor, foreign_value, map_tensors

Transform = Callable[[Any], Any]
Key = tuple[int, int, int, int, int]
"""Seed, stream, task, part and example."""

# Of torchvision's v2, what does the same to each example of a batch, and always.
_FIXED = frozenset(
    ["CenterCrop", "ConvertImageDtype", "Grayscale", "Identity", "Normalize", "Pad", "RGB", "Resize", "ToDtype"]
)


class Transforms:
    """Transforms the support and the query sets of tasks, as a pure function of seed, split, task, part and example.

    What torchvision's v2 does to every example alike (`Resize`, `Normalize`, ...) runs once on a whole meta-batch.
    Everything else runs example by example, with the generators of torch, NumPy and Python seeded for each.

    Args:
        support: Of one support example, as the data set gives it; uint8 images are floats in [0, 1] here. `None`
            leaves them as they are.
        query: The same of a query example.
        split: The split that they are of.
        seed: What randomness follows from, with the split, the task, the part and the example.

    Raises:
        ArgumentTypeError: At construction, a transform cannot be called.
    """

    def __init__(self, support: Transform | None, query: Transform | None, split: str, seed: int) -> None:
        for transform in (support, query):
            check_transform(f"A transform of the {split} split", transform)
        self.parts = support, query
        self.split, self.seed = split, seed

    def __bool__(self) -> bool:
        return any(transform is not None for transform in self.parts)

    @property
    def is_random(self) -> bool:
        """Whether anything might be random, and so runs example by example, with seeds on the CPU."""
        return any(not fixed for part in self.parts for fixed, _ in _stages(part))

    def __call__(self, inputs: Sequence[Any], places: Sequence[Places], numbers: Sequence[int]) -> list[Any]:
        """The transformed inputs of all examples that there are, `(examples, ...)`, task by task, for each part.

        Args:
            inputs: Those of the support and of the query sets, as `Reader.read` returns them.
            places: Where they come from.
            numbers: The tasks' numbers.

        Raises:
            DataError: A transform fails.
            ArgumentTypeError: What it returns cannot be stacked.
        """
        tasks = np.asarray(numbers, dtype=np.int64)[:, None]
        found = []
        for which, (transform, part, of_part) in enumerate(zip(self.parts, places, inputs, strict=True)):
            of = part._replace(found=np.broadcast_to(tasks, part.found.shape)).real.tolist()
            which_examples = zip(of, part.real.tolist(), strict=True)
            keys = [(self.seed, STREAMS[self.split], task, which, example) for task, example in which_examples]
            found.append(self._transformed(transform, of_part, keys))
        return found

    def _transformed(self, transform: Transform | None, inputs: Any, keys: list[Key]) -> Any:
        for number, (fixed, stage) in enumerate(_stages(transform), 1):
            try:
                if fixed and isinstance(inputs, Tensor):
                    inputs = stage(inputs)
                else:
                    inputs = _one_by_one(stage, inputs, keys, number)
            except (DataError, ArgumentTypeError):
                raise
            except Exception as error:
                raise DataError(
                    f"{self.split}: the transform {transform!r} fails on inputs {_shape(inputs)}: {first_line(error)}"
                ) from error
        return inputs


def check_transform(name: str, transform: Any) -> None:
    """Refuse what cannot be called with one example.

    Raises:
        ArgumentTypeError: It cannot; a class, which is not yet a transform, is refused, too.
    """
    if transform is not None and (not callable(transform) or isinstance(transform, type)):
        raise ArgumentTypeError(
            f"{name} must be something to call with an example, such as torchvision.transforms.v2.Compose([...]); got "
            f"{transform!r}."
        )


def _stages(transform: Transform | None) -> Iterator[tuple[bool, Transform]]:
    """The steps of a transform: whether they treat a batch as each of its examples, and those that do so together."""
    for fixed, steps in groupby(_steps(transform), _is_fixed):
        yield fixed, _InTurn(list(steps))


def _steps(transform: Transform | None) -> Iterator[Transform]:
    name = f"{type(transform).__module__}.{type(transform).__name__}"
    if transform is None:
        return
    if type(transform) is nn.Sequential or name == "torchvision.transforms.v2._container.Compose":
        steps: Any = transform.transforms if hasattr(transform, "transforms") else transform
        for step in steps:
            yield from _steps(step)
    else:
        yield transform


def _is_fixed(step: Transform) -> bool:
    return type(step).__module__.startswith("torchvision.transforms.v2.") and type(step).__name__ in _FIXED


class _InTurn:
    def __init__(self, steps: list[Transform]) -> None:
        self.steps = steps

    def __call__(self, inputs: Any) -> Any:
        for step in self.steps:
            inputs = step(inputs)
        return inputs


def _one_by_one(stage: Transform, inputs: Any, keys: list[Key], number: int) -> Any:
    found = []
    with global_state_kept(), torch.no_grad():
        for row, key in enumerate(keys):
            seed_all(*key, number)
            found.append(stage(map_tensors(lambda t, row=row: t[row], inputs)))
    foreign = foreign_value(found[0], "what it returns")
    if foreign is None:
        try:
            return default_collate(found)
        except (TypeError, RuntimeError) as error:
            foreign = first_line(error)
    raise ArgumentTypeError(
        f"A transform must make tensors of one size of all examples, since they are stacked: {foreign}. End it in a "
        "crop or a Resize to a fixed size, and leave images as tensors."
    )


def _shape(inputs: Any) -> str:
    tensor = first_tensor(inputs)
    return f"{tuple(tensor.shape[1:])} of {tensor.dtype}"
