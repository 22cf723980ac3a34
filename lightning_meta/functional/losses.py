"""The losses of many tasks at once."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_meta.functional.learner import Learner


def losses_of_tasks(
    loss: Callable[[Any, Tensor], Tensor], learner: Learner, predictions: Any, targets: Tensor
) -> Tensor:
    """The loss of each task.

    The two usual losses are computed as they are, any other through `torch.vmap`, which costs more than a small loss.

    Args:
        loss: Maps predictions and targets of one task to a scalar.
        learner: Runs functions over tasks.
        predictions: `(B, examples, ...)`, or any nesting of such tensors.
        targets: `(B, examples, ...)`.

    Returns:
        `(B,)`, if the loss is a scalar.
    """
    if loss is F.mse_loss and predictions.shape == targets.shape:
        return F.mse_loss(predictions, targets, reduction="none").flatten(1).mean(1)
    if loss is F.cross_entropy and predictions.dim() == 3 and targets.dim() == 2 and not targets.is_floating_point():
        each = F.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        return each.sum(1) / (targets != -100).sum(1)  # which is the class number of examples that do not count
    found: Tensor = learner.over_tasks(loss)(predictions, targets)
    return found
