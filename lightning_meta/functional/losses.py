"""Losses and accuracies of many tasks at once, and the classes that tasks have."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.functional.masks import filled, like, masked_mean, real_parts
from lightning_meta.task import Task, are_classes, first_tensor, map_tensors, present_classes

Loss = Callable[[Any, Any], Tensor]
"""Maps predictions and targets of one task to a scalar."""

IGNORED = -100
"""The class number that torch's cross-entropy leaves out."""

# Losses that would silently broadcast targets of another shape.
ELEMENTWISE = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss, F.gaussian_nll_loss, F.kl_div,
    F.soft_margin_loss,
)  # fmt: skip


def losses_of_tasks(loss: Loss, predictions: Any, targets: Any, mask: Tensor | None = None) -> Tensor:
    """The loss of each task.

    The two usual losses are computed as they are, any other through `torch.vmap`, which costs more than a small loss;
    with a mask any other is called for one task after another, with the examples that it has.

    Args:
        loss: Maps predictions and targets of one task to a scalar.
        predictions: `(B, examples, ...)`, or any nesting of such tensors.
        targets: `(B, examples, ...)`, likewise.
        mask: Which examples there are, `(B, examples)`; all if `None`.

    Returns:
        `(B,)` losses.

    Raises:
        ArgumentTypeError: Cross-entropy is asked for, of predictions that are not one tensor.
        ConfigurationError: The loss of one task is not a scalar, or predictions and targets do not fit.
    """
    is_tensor = isinstance(predictions, Tensor)
    if loss is F.mse_loss and is_tensor and predictions.shape == targets.shape:
        each = F.mse_loss(predictions, targets, reduction="none")
        return each.flatten(1).mean(1) if mask is None else masked_mean(each, like(mask, each))
    if loss is F.cross_entropy and is_tensor and predictions.dim() == 3 and are_classes(targets):
        each = F.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        counts = targets != IGNORED
        return each.sum(1) / counts.sum(1) if mask is None else masked_mean(each, counts & mask)
    check_predictions(loss, predictions, targets)
    loss = _watched(loss)
    if mask is not None:
        found = torch.stack([loss(*parts) for parts in real_parts(mask, predictions, targets)])
    elif len(first_tensor(targets)) == 1:
        found = loss(*map_tensors(lambda t: t.squeeze(0), (predictions, targets))).unsqueeze(0)
    else:
        found = torch.vmap(loss, randomness="different")(predictions, targets)
    if found.dim() != 1:
        raise ConfigurationError(f"The loss of one task must be a scalar, but has the shape {tuple(found.shape[1:])}.")
    return found


class _Watch(TorchFunctionMode):
    """Within it, losses of torch, and what is done with predictions and targets themselves, do not broadcast."""

    def __init__(self, predictions: Any, targets: Any) -> None:
        super().__init__()
        self.given = {id(t): t for t in (predictions, targets) if isinstance(t, Tensor)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pair = [t for t in (*args, *kwargs.values())[:2] if isinstance(t, Tensor)]
        is_theirs = func in ELEMENTWISE or (
            all(id(t) in self.given for t in pair) and len({t.numel() for t in pair}) == 1
        )
        if len(pair) == 2 and is_theirs and pair[0].shape != pair[1].shape:
            raise ConfigurationError(
                f"The loss compares {tuple(pair[0].shape)} with {tuple(pair[1].shape)}, which torch would broadcast to "
                "every pair of them. Give the network's outputs and the targets the same shape, for instance by "
                "targets.unsqueeze(-1) in the data."
            )
        return func(*args, **kwargs)


def _watched(loss: Loss) -> Loss:
    def watched(predictions: Any, targets: Any) -> Tensor:
        with _Watch(predictions, targets):
            return loss(predictions, targets)

    return watched


def accuracies_of_tasks(predictions: Any, targets: Any, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The accuracy of each task, as `{"accuracy": (B,)}`; nothing where there are not logits for each class number.

    Args:
        predictions: Logits `(B, examples, N, ...)` of at least two classes; these are in the second dimension of a
            task's, as for torch's losses.
        targets: Class numbers `(B, examples, ...)`; those that cross-entropy ignores do not count.
        mask: Which examples there are, `(B, examples)`; all if `None`.
    """
    if not isinstance(predictions, Tensor) or not isinstance(targets, Tensor) or predictions.dim() != targets.dim() + 1:
        return {}
    if targets.is_floating_point() or targets.dtype == torch.bool or predictions.shape[2] < 2:
        return {}
    if predictions.shape[:2] + predictions.shape[3:] != targets.shape:
        return {}
    right, counts = predictions.argmax(2) == targets, targets != IGNORED
    if mask is not None:
        counts = counts & like(mask, targets)
    return {"accuracy": (right & counts).flatten(1).sum(1) / counts.flatten(1).sum(1)}


def check_support_classes(tasks: Task, *, all_below: bool = False) -> int:
    """Refuse tasks that cannot be classified by what their support sets have, and count the classes.

    Args:
        tasks: A batch of `B` tasks.
        all_below: Whether every class below the largest has to have an example in each support set; otherwise those
            that the query set asks for.

    Returns:
        The number `N` of classes, of the task that has most.

    Raises:
        ConfigurationError: A class has no support example, or targets are not the numbers of classes.
    """
    tasks = Task(*(part if part.mask is None else filled(part) for part in tasks))
    targets = tasks.support.targets
    if not are_classes(targets) or targets.min() < 0:
        kind = f"{targets.dtype} from {targets.min()}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ConfigurationError(f"A head made of the support set needs class numbers from 0 for targets, got {kind}.")
    query = tasks.query.targets if are_classes(tasks.query.targets) else targets
    n_way = 1 + int(torch.maximum(targets.max(), query.max()))
    there = present_classes(Task(tasks.support, tasks.support), n_way)
    asked = torch.ones_like(there) if all_below else present_classes(Task(tasks.query, tasks.query), n_way)
    missing = (asked & ~there).nonzero()
    if len(missing):
        raise ConfigurationError(
            f"A task has no support example of class {int(missing[0, 1])}, of {n_way} classes, so nothing tells it "
            "from the others. Every class that is asked for needs at least one."
        )
    return n_way


def is_cross_entropy(loss: Loss) -> bool:
    """Whether a loss is torch's cross-entropy."""
    return loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)


def check_predictions(loss: Loss, predictions: Any, targets: Any) -> None:
    """Refuse predictions and targets that a loss of torch would silently make something else of.

    Raises:
        ArgumentTypeError: Cross-entropy is asked for, of predictions that are not one tensor.
        ConfigurationError: An elementwise loss would broadcast one against the other, or cross-entropy would be 0
            whatever is predicted.
    """
    if not is_cross_entropy(loss):
        return
    if not isinstance(predictions, Tensor):
        raise ArgumentTypeError(
            f"The network returned a {type(predictions).__name__}. For cross-entropy it must return one tensor of "
            "logits: wrap it, or give a loss that takes what it returns."
        )
    if predictions.dim() == 3 and predictions.shape[-1] == 1 and targets.is_floating_point():
        raise ConfigurationError(
            f"The targets are real numbers ({targets.dtype}), but the loss is cross-entropy, the default. For "
            "regression give loss=torch.nn.functional.mse_loss."
        )


def check_classes(outputs: int, targets: Tensor, mask: Tensor | None = None) -> None:
    """Refuse class numbers without an output.

    Args:
        outputs: How many classes the network tells apart.
        targets: Class numbers of tasks, of any shape, at least one.
        mask: Which of them there are, of the same shape; all if `None`.

    Raises:
        ConfigurationError: One is negative or too large.
    """
    there = targets[(targets != IGNORED) & (torch.ones_like(targets, dtype=torch.bool) if mask is None else mask)]
    if not there.numel():
        return
    smallest, largest = int(there.min()), int(there.max())
    if largest >= outputs or smallest < 0:
        raise ConfigurationError(
            f"The network has {outputs} outputs, but the targets are classes {smallest} to {largest}. Classes of a "
            "task are numbered from 0, and each needs an output."
        )
