"""What users override of predictions and targets: methods that may leave out the mask, and what they have to return."""

import inspect
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.masks import real_parts
from lightning_meta.task import first_tensor, map_tensors


def complete_hooks(cls: type) -> None:
    """Complete the methods `task_losses` and `task_metrics` that a class overrides.

    They take predictions and targets of all tasks, `(B, examples, ...)`. One without an argument `mask` is called,
    where there is a mask, for one task after another with its real examples alone. What they return is checked.
    """
    for name in ("task_losses", "task_metrics"):
        if name in vars(cls):
            _complete(cls, name)


def _complete(cls: type, name: str) -> None:
    hook = inspect.getattr_static(cls, name)
    parameters = inspect.signature(getattr(cls, name)).parameters.values()
    takes_masks = any(parameter.name == "mask" or parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    checked = checked_losses if name == "task_losses" else checked_metrics

    @wraps(getattr(cls, name))
    def completed(self: Any, predictions: Any, targets: Any, mask: Tensor | None = None) -> Any:
        own = hook.__get__(self, type(self))
        where, count = f"{cls.__name__}.{name}", len(first_tensor(targets))
        if mask is None or takes_masks:
            masks = {"mask": mask} if takes_masks else {}
            return checked(own(predictions, targets, **masks), count, where)
        parts = [map_tensors(lambda t: t.unsqueeze(0), part) for part in real_parts(mask, predictions, targets)]
        results = [checked(own(*part), 1, where) for part in parts]
        return map_tensors(lambda *each: torch.cat(each), *results)

    setattr(cls, name, completed)


def checked_losses(losses: Any, count: int, where: str) -> Tensor:
    """Refuse what is not one loss for each task, `(B,)`.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        raise ConfigurationError(
            f"{where} must return the loss of each task, ({count},), but returned {_shown(losses)}. A mean over all "
            "tasks is taken afterwards."
        )
    return losses


def checked_metrics(metrics: Any, count: int, where: str) -> dict[str, Tensor]:
    """Metrics as values of each task, `(B,)`; of several values `(B, n)` each has a name with its number.

    Raises:
        ConfigurationError: They are something else.
    """
    if not isinstance(metrics, dict):
        raise ConfigurationError(f"{where} must return a dict of tensors ({count},), but returned {_shown(metrics)}.")
    found: dict[str, Tensor] = {}
    for key, values in metrics.items():
        if not isinstance(values, Tensor) or values.shape[:1] != (count,) or values.dim() > 2:
            raise ConfigurationError(
                f"{where} must return one value for each task, ({count},), or a few, ({count}, n), but {key!r} is "
                f"{_shown(values)}. The option metrics= takes metrics of torchmetrics over all examples, such as a "
                "confusion matrix."
            )
        found |= {key: values} if values.dim() == 1 else {f"{key}_{i}": each for i, each in enumerate(values.unbind(1))}
    return found


def _shown(value: Any) -> str:
    return f"of the shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
