"""Figures of where a robot goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_meta.errors import ConfigurationError
from lightning_meta.modules.evaluation import collected, with_gradients
from lightning_meta.rl.acting import which
from lightning_meta.rl.navigation import NavigationSuite
from lightning_meta.task import Examples, Task, map_tensors

_COLOURS = {"before": "tab:gray", "after": "tab:blue"}
_MOST_EPISODES = 10


def plot_paths(paths: Sequence[dict[str, Examples]], goals: Tensor, path: str | Path) -> None:
    """Draw where a point robot went, a panel for each task.

    Args:
        paths: For each task the episodes under a label, `"before"` and `"after"` adaptation: positions `(E, T, 2)` as
            inputs, `Experience` as targets.
        goals: Of each task, `(tasks, 2)`.
        path: A PNG file to write.

    Raises:
        ConfigurationError: There is no task.
    """
    from matplotlib.figure import Figure

    if not paths:
        raise ConfigurationError("There is no task whose paths could be drawn.")
    figure = Figure(figsize=(3.2 * len(paths), 3.4), layout="constrained")
    panels = figure.subplots(1, len(paths), squeeze=False)[0]
    for panel, of_task, goal in zip(panels, paths, goals.tolist(), strict=True):
        for label, episodes in of_task.items():
            for number, (places, there) in enumerate(zip(episodes.inputs, episodes.targets.mask, strict=True)):
                if number < _MOST_EPISODES:
                    own = places[there].cpu().numpy()
                    panel.plot(
                        own[:, 0], own[:, 1], color=_COLOURS.get(label), linewidth=0.8, alpha=0.7,
                        label=label if number == 0 else None,
                    )  # fmt: skip
        panel.plot(*goal, "*", color="red", markersize=10, label="goal")
        panel.plot(0, 0, "o", color="black", markersize=4)
        panel.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        panel.grid(alpha=0.3)
    panels[0].legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=150)


class NavigationFigures(pl.Callback):
    """Draws where the robots of the first tasks of a test go, before and after adaptation (`paths.png`).

    Args:
        tasks: How many tasks.
        folder: Where to write it; `figures` in the Trainer's `default_root_dir` if `None`.

    Raises:
        ConfigurationError: In a test, its tasks are not those of `NavigationDataModule`.
    """

    def __init__(self, tasks: int = 4, folder: str | None = None) -> None:
        self.tasks, self.folder = tasks, folder

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Task,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Act once more in the first tasks, with the same random numbers, and draw."""
        if batch_idx or not trainer.is_global_zero:
            return
        module: Any = pl_module
        split, numbers = which(batch)
        suite = module.sampler.source(module).suites[split]
        if not isinstance(suite, NavigationSuite):
            raise ConfigurationError(
                f"NavigationFigures draws points on a plane, not what a {type(suite).__name__} has."
            )
        with with_gradients(map_tensors(lambda t: t[: self.tasks], batch)) as tasks:
            found = collected(module, tasks, training=False)
        first = found.support if module.sampler.steps else map_tensors(lambda t: t.unsqueeze(1), found.query)
        paths = [
            {
                "before": map_tensors(lambda t, i=i: t[i, 0], first),
                "after": map_tensors(lambda t, i=i: t[i], found.query),
            }
            for i in range(len(found.query.inputs))
        ]
        folder = Path(self.folder or Path(trainer.default_root_dir) / "figures")
        folder.mkdir(parents=True, exist_ok=True)
        plot_paths(paths, suite.goals(numbers[: self.tasks]).to(torch.float32), folder / "paths.png")
