"""What a task is: the one type in which data modules and algorithm modules meet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_meta.errors import ArgumentTypeError, ConfigurationError

__all__ = ["Examples", "Task", "TaskDistribution", "stack_tasks"]

Tree = TypeVar("Tree")


class Examples(NamedTuple):
    """Labelled examples.

    Attributes:
        inputs: A tensor `(examples, ...)`, or any nesting of dicts, lists and tuples of such tensors. In a batch of
            tasks every tensor has a leading task dimension: `(B, examples, ...)`.
        targets: Class numbers `(examples,)`, regression targets `(examples, ...)`, or any nesting of such tensors;
            `(B, examples, ...)` in a batch.
        mask: Which examples there are, `(examples,)` bool, `(B, examples)` in a batch; all of them if `None`. Tasks of
            different sizes are padded to the largest; what stands in the padding has no effect on anything.
    """

    inputs: Any
    targets: Any
    mask: Tensor | None = None


class Task(NamedTuple):
    """A few-shot task: adapt to `support`, be judged on `query`.

    In a batch of `B` tasks of `N` classes, `support.inputs` is `(B, N*K, ...)` and `query.inputs` is `(B, N*Q, ...)`
    with `K` support and `Q` query examples of each class, class by class. Where tasks have different sizes, the
    examples of a task come first, and its padding after them.
    """

    support: Examples
    query: Examples


class TaskDistribution(Protocol):
    """Where tasks come from: anything that makes the tasks of given numbers.

    Task number `i` must be the same whenever it is asked for and whoever asks, so that any number of processes sees
    one stream of tasks. `lightning_meta.randomness.uniforms` gives random numbers with that property.
    """

    def tasks(self, numbers: Sequence[int]) -> Task:
        """Make the tasks of these numbers, batched along a leading task dimension.

        Args:
            numbers: `B` task numbers.

        Returns:
            The batch: inputs `(B, examples, ...)`, targets `(B, examples, ...)`.
        """
        ...


def stack_tasks(tasks: Sequence[Task]) -> Task:
    """Stack single tasks, which may have different numbers of examples, to a batch.

    Args:
        tasks: `B` tasks without a task dimension: tensors `(examples, ...)`, alike but for the number of examples.

    Returns:
        The batch `(B, examples, ...)`. Where numbers differ, sets are padded with zeros to the largest, and their masks
        say which examples there are.

    Raises:
        ConfigurationError: There are no tasks, or tensors of two tasks differ in more than their length.

    Example:
        >>> sizes = [Examples(torch.ones(n, 4), torch.zeros(n, dtype=torch.long)) for n in (2, 3)]
        >>> batch = stack_tasks([Task(support, support) for support in sizes])
        >>> batch.support.inputs.shape, batch.query.mask.tolist()
        (torch.Size([2, 3, 4]), [[True, True, False], [True, True, True]])
    """
    if not tasks:
        raise ConfigurationError("There must be at least one task to stack.")
    support, query = (_stacked([task[i] for task in tasks]) for i in (0, 1))
    return Task(support, query)


def _stacked(parts: Sequence[Examples]) -> Examples:
    def stack(*each: Tensor) -> Tensor:
        try:
            return pad_sequence(list(each), batch_first=True)
        except RuntimeError as error:
            shapes = sorted({tuple(tensor.shape) for tensor in each})
            raise ConfigurationError(f"Tensors of the shapes {shapes} cannot be stacked: {error}") from error

    lengths = [len(first_tensor(part.targets)) for part in parts]
    masks = [
        torch.ones(n, dtype=torch.bool) if part.mask is None else part.mask
        for n, part in zip(lengths, parts, strict=True)
    ]
    inputs, targets = map_tensors(stack, *[(part.inputs, part.targets) for part in parts])
    whole = len(set(lengths)) == 1 and all(part.mask is None for part in parts)
    return Examples(inputs, targets, None if whole else stack(*masks))


def map_tensors(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to every tensor in a nesting of dicts, lists, tuples and NamedTuples.

    With several trees of the same form it gets one tensor of each.

    Raises:
        ValueError: Trees have different numbers of tensors.
    """
    together = zip(*(tensors_of(each) for each in (tree, *others)), strict=True)
    results = iter([function(*tensors) for tensors in together])
    return cast(Tree, apply_to_collection(tree, Tensor, lambda _: next(results)))


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor in a nesting of dicts, lists, tuples and NamedTuples, in order."""
    found: list[Tensor] = []
    apply_to_collection(tree, Tensor, found.append)
    return found


def foreign_value(tree: Any, name: str) -> str | None:
    """The first value in a nesting that is no tensor, in words such as `x["text"], a str`; `None` if there is none."""
    if isinstance(tree, Tensor):
        return None
    if isinstance(tree, Mapping):
        items = [(f"{name}[{key!r}]", value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(f"{name}[{i}]", value) for i, value in enumerate(tree)]
    elif is_dataclass(tree) and not isinstance(tree, type):
        items = [(f"{name}.{field.name}", getattr(tree, field.name)) for field in fields(tree)]
    else:
        return f"{name}, a {type(tree).__name__}"
    return next((found for key, value in items if (found := foreign_value(value, key))), None)


def plain_inputs(tasks: Task) -> Task:
    """The same tasks with inputs that torch knows how to divide: any mapping, a tokenizer's say, as a dict.

    Raises:
        ArgumentTypeError: Something among the inputs is no tensor, or there is none.
    """
    for part in tasks:
        foreign = foreign_value(part.inputs, "inputs")
        if foreign is not None:
            raise ArgumentTypeError(f"Only tensors can be divided among the tasks, but there is {foreign}.")
        if not tensors_of(part.inputs):
            raise ArgumentTypeError(f"The inputs of a task must hold a tensor, but there is none in {part.inputs!r}.")
    support, query = (part._replace(inputs=with_dicts(part.inputs)) for part in tasks)
    return Task(support, query)


def with_dicts(tree: Any) -> Any:
    """The same nesting, with any mapping, such as the encoding of a tokenizer, as a dict."""
    if isinstance(tree, Mapping):
        return {key: with_dicts(value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(with_dicts, tree))
    return type(tree)(map(with_dicts, tree)) if isinstance(tree, list | tuple) else tree


def structure_of(tree: Any) -> str:
    """What a nesting has around its tensors, in words: keys in their order, other values than tensors, types."""
    if isinstance(tree, Tensor):
        return "..."
    return repr(apply_to_collection(tree, Tensor, lambda _: ...))


def number_of_tasks(tasks: Task) -> int:
    """The number `B` of tasks in a batch."""
    return len(first_tensor(tasks.support.targets))


def number_of_examples(examples: Examples) -> int:
    """How many places for examples each task of a batch has, padding included."""
    return first_tensor(examples.targets).shape[1]


def first_tensor(tree: Any) -> Tensor:
    """The first tensor of a nesting, which stands for all where only the leading dimensions are asked for."""
    return tree if isinstance(tree, Tensor) else tensors_of(tree)[0]


def are_classes(targets: Any) -> bool:
    """Whether the targets of a batch of tasks are one class number for each example, `(B, examples)`."""
    return isinstance(targets, Tensor) and targets.dim() == 2 and not targets.is_floating_point()


def class_counts(tasks: Task) -> tuple[int | None, int]:
    """The number `N` of classes where every task has all of the classes 0 to `N - 1`, else `None`; the most of a task.

    Args:
        tasks: A batch. Where examples are masked, tasks count as having different classes, without a look at the data;
            where targets are no class numbers, there are 0.
    """
    support, query = tasks.support.targets, tasks.query.targets
    masked = tasks.support.mask is not None or tasks.query.mask is not None
    if masked or not are_classes(support) or not support.numel():
        return None, _largest_class(tasks) + 1
    largest = int(support.max())
    if largest < 0 or (are_classes(query) and int(query.max()) > largest):
        return None, _largest_class(tasks) + 1
    present = present_classes(Task(tasks.support, tasks.support), largest + 1)
    return (largest + 1 if bool(present.all()) else None), largest + 1


def _largest_class(tasks: Task) -> int:
    """The largest class number of the examples that there are; -1 without classes."""
    largest = [-1]
    for part in tasks:
        if are_classes(part.targets):
            real = part.targets if part.mask is None else part.targets[part.mask]
            largest.append(int(real.max()) if real.numel() else -1)
    return max(largest)


def present_classes(tasks: Task, n_way: int) -> Tensor:
    """Which of the classes 0 to `N - 1` the examples of each task have, support and query together: `(B, N)` bool."""
    targets = tasks.support.targets
    present = torch.zeros(len(targets), n_way + 1, dtype=torch.bool, device=targets.device)
    for part in tasks:
        if not are_classes(part.targets):
            continue
        counts = (part.targets >= 0) & (part.targets < n_way)
        if part.mask is not None:
            counts = counts & part.mask
        present.scatter_(1, torch.where(counts, part.targets, n_way), True)
    return present[:, :n_way]
