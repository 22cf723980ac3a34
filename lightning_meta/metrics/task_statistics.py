"""The mean over tasks and its confidence interval."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric


def mean_and_ci95(values: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean over tasks and the half-width of its 95 % confidence interval, :math:`1.96\, s / \sqrt{T}`.

    Args:
        values: One value per task, `(T, ...)`.

    Returns:
        Mean and half-width, each `(...)`, in float64. The half-width of a single task is NaN.

    Example:
        >>> mean, ci95 = mean_and_ci95(torch.tensor([0.8, 0.9, 1.0, 0.9]))
        >>> round(mean.item(), 3), round(ci95.item(), 3)
        (0.9, 0.08)
    """
    values = values.double()
    tasks = len(values)
    if tasks < 2:
        return values.mean(0), torch.full_like(values.mean(0), torch.nan)
    return values.mean(0), 1.96 * values.std(0) / tasks**0.5


class TaskStatistics(Metric):
    """Collects values of each task and gives, for each name, the mean over all tasks and its 95 % interval.

    The values of every task are kept, so the result does not depend on how tasks are divided among devices.

    Example:
        >>> metric = TaskStatistics()
        >>> metric.update({"query_accuracy": torch.tensor([0.8, 1.0])})
        >>> round(metric.compute()["query_accuracy"][0].item(), 3)
        0.9
    """

    full_state_update = False
    is_differentiable = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add a batch of `B` tasks.

        Args:
            values: For each name the tasks' values, `(B,)`; the same names each time.

        Raises:
            ValueError: The names differ from those of the batches before.
        """
        names = sorted(values)
        if self.values and names != self.names:
            raise ValueError(f"Every batch must have the same metrics: had {self.names}, got {names}.")
        self.names = names
        self.values.append(torch.stack([values[name].float() for name in names], dim=1))

    def compute(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For each name the mean and the half-width of the interval, scalars in float64."""
        return {name: mean_and_ci95(values) for name, values in self.per_task().items()}

    def per_task(self) -> dict[str, Tensor]:
        """For each name the values of all tasks, `(T,)`, in the order in which they came; on several devices one's own.

        Two models that were measured on the same tasks are compared by the differences of these: see `mean_and_ci95`.
        """
        values = torch.cat(self.values) if isinstance(self.values, list) else self.values
        return dict(zip(self.names, values.cpu().unbind(1), strict=True))
