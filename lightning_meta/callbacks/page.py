"""One page of figures that says what a trained module does on the tasks of a test."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_meta.callbacks.figures import draw_adaptation, draw_episode, episode_size, without_normalization
from lightning_meta.callbacks.results import TaskResults
from lightning_meta.metrics import RowResult, mean_and_ci95
from lightning_meta.metrics.results import SHOWN
from lightning_meta.task import Task, are_classes, map_tensors, number_of_tasks

_TRAINED, _UNTRAINED = "meta-trained", "no meta-training"
_MOST_CLASSES = 12
_WIDTH = 12.0
_SMALL = 4.0
_LINE = 3
"""Inches, and how many small panels are in a line."""
_MARGINS = {"left": 0.18, "bottom": 0.17, "right": 0.97, "top": 0.9}
_REGRESSIONS = 3
_GRID = 200
Panel = tuple[tuple[float, float], Callable[[Any], None]]
"""The size in inches that it needs, and what draws it into a part of a figure."""


class TaskFigures(pl.Callback):
    """Draws a page about a test: `figures/test.png`, which goes to TensorBoard and wandb, too.

    It has, where they make sense, the first task with its mistakes, or its curves before and after adaptation; the
    metric over inner steps; its histogram over tasks; and the classes that are hardest, for which `TaskResults` has to
    be a callback before this one. The command `show` makes it.

    Args:
        folder: Where to write it; `figures` in the Trainer's `default_root_dir` if `None`.
        steps: Inner steps of the curve; the module's `val_inner_steps` if `None`.
        tasks: How many tasks the curve is of.
        untrained: The module before meta-training, to compare with.
    """

    def __init__(
        self, folder: str | None = None, steps: int | None = None, tasks: int = 64, untrained: Any = None
    ) -> None:
        self.folder = folder
        self.steps = steps
        self.tasks = tasks
        self.untrained = untrained
        self._forget()

    def _forget(self) -> None:
        self._first: Task | None = None
        self._of_tasks: list[dict[str, Tensor]] = []
        self._curves: dict[str, list[Tensor]] = defaultdict(list)
        self._metric = "query_loss"

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the test before."""
        self._forget()
        if self.untrained is not None:
            self.untrained.trainer = trainer  # whose data module has environments to act in

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Task, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep what the page is made of: all of the first row of the test."""
        metric = next((name for name in SHOWN if isinstance(outputs, dict) and name in outputs), None)
        if dataloader_idx or not trainer.is_global_zero or metric is None:
            return
        self._metric = metric
        self._first = batch if self._first is None else self._first
        self._of_tasks.append({self._metric: outputs[self._metric].cpu()})
        if sum(map(len, self._curves[_TRAINED])) >= self.tasks:
            return
        modules = {_TRAINED: pl_module} | ({} if self.untrained is None else {_UNTRAINED: self.untrained})
        for label, module in modules.items():
            if not module.task_map.names:  # it adapts in closed form
                values = outputs if module is pl_module else module.test_step(batch, batch_idx)
                curve = values[self._metric].unsqueeze(1)
            else:
                curve = module.to(pl_module.device).adaptation_curve(batch, self.steps)[self._metric]
            self._curves[label].append(curve.cpu())

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the page."""
        if not trainer.is_global_zero or self._first is None:
            return
        path = Path(self.folder or Path(trainer.default_root_dir) / "figures") / "test.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure = _page(self._panels(trainer, pl_module), f"{type(pl_module).__name__}, test tasks")
        figure.savefig(path, dpi=150)
        for logger in trainer.loggers:
            _log(logger, figure, path, trainer.global_step)
        rank_zero_info(f"The page about this test is {path}.")
        self._forget()

    def _panels(self, trainer: pl.Trainer, module: Any) -> list[Panel]:
        assert self._first is not None
        name = self._metric.replace("_", " ")
        panels = [*_task_panel(module, self._first, getattr(trainer, "datamodule", None))]
        curves = {label: torch.cat(parts) for label, parts in self._curves.items()}
        steps = curves[_TRAINED].shape[1]
        if len(curves) == 1:  # whether it is trained is not known here
            curves = {type(module).__name__: curves[_TRAINED]}
        if steps > 1:
            panels.append(((_SMALL, 3.4), lambda part: _draw_curves(part, curves, name)))
        elif len(curves) > 1:
            panels.append(((_SMALL, 3.4), lambda part: _draw_bars(part, curves, name)))
        values = torch.cat([found[self._metric] for found in self._of_tasks])
        panels.append(((_SMALL, 3.4), lambda part: _draw_histogram(part, values, name)))
        rows = [row for each in _callbacks(trainer) if isinstance(each, TaskResults) for row in each.rows]
        if rows and rows[0].classes:
            panels.append(((_SMALL, 3.4), lambda part: _draw_hardest(part, rows[0])))
        return panels


def _callbacks(trainer: pl.Trainer) -> list[Any]:
    found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def _page(panels: list[Panel], title: str) -> Any:
    """Large panels below each other, then the small ones side by side."""
    from matplotlib.figure import Figure

    large = [panel for panel in panels if panel[0][0] > _SMALL]
    small = [panel for panel in panels if panel[0][0] <= _SMALL]
    lines = [[panel] for panel in large] + [small[i : i + _LINE] for i in range(0, len(small), _LINE)]
    width = max(_WIDTH, *(size[0] for size, _ in panels))
    heights = [max(size[1] for size, _ in line) for line in lines]
    figure = Figure(figsize=(width, sum(heights) + 0.4))
    parts = figure.subfigures(len(lines) + 1, 1, height_ratios=[0.4, *heights], squeeze=False)[:, 0]
    parts[0].suptitle(title, fontsize=12, y=0.5, va="center")
    for part, line in zip(parts[1:], lines, strict=True):
        widths = [size[0] for size, _ in line]
        rest = [width - sum(widths)] if sum(widths) < width - 0.01 else []
        cells = part.subfigures(1, len(line) + len(rest), width_ratios=widths + rest, squeeze=False)[0]
        for cell, (_, draw) in zip(cells, line, strict=False):
            draw(cell)
    return figure


def _task_panel(module: Any, batch: Task, datamodule: Any) -> list[Panel]:
    """The first task, if it is of images or of curves."""
    inputs, targets = batch.support.inputs, batch.support.targets
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        return []
    if are_classes(targets) and inputs.dim() == 5 and inputs.shape[2] in (1, 3):
        task = without_normalization(map_tensors(lambda t: t[0].cpu(), batch), datamodule)
        predictions = module.predict_step(batch, 0)[0]
        if isinstance(predictions, Tensor) and predictions.dim() == 2:
            rows, columns = episode_size(task)
            scale = max(min(0.75, 16 / columns), 1.01 * _SMALL / columns)
            return [((scale * columns, scale * rows), lambda part: draw_episode(part, task, predictions.cpu()))]
    if targets.is_floating_point() and inputs.dim() == 3 == targets.dim() and inputs.shape[2] == 1 == targets.shape[2]:
        return [((_WIDTH, 3.4), lambda part: _draw_regressions(part, module, batch))]
    return []


def _draw_regressions(part: Any, module: Any, batch: Task) -> None:
    """The curves of the first tasks before and after adaptation, with the examples."""
    shown = min(_REGRESSIONS, number_of_tasks(batch))
    all_axes = part.subplots(
        1, shown, squeeze=False, sharey=True, gridspec_kw={"left": 0.06, "right": 0.98, "bottom": 0.16}
    )[0]
    for i, axes in enumerate(all_axes):
        support, query = (map_tensors(lambda t: t[i], each) for each in batch)  # noqa: B023
        support, query = (e if e.mask is None else map_tensors(lambda t: t[e.mask], e) for e in (support, query))  # noqa: B023
        both = torch.cat([support.inputs, query.inputs])
        grid = torch.linspace(both.min().item(), both.max().item(), _GRID, device=both.device).to(both).unsqueeze(1)
        axes.plot(query.inputs.cpu(), query.targets.cpu(), ".", color="0.7", label="query targets")
        for steps, label in ((0, "before adaptation"), (None, "after")):
            curve = module.adapt_to(support.inputs, support.targets, steps)(grid)
            axes.plot(grid.cpu(), curve.detach().cpu(), "--" if steps == 0 else "-", label=label)
        axes.plot(support.inputs.cpu(), support.targets.cpu(), "k^", label="support")
        axes.grid(alpha=0.3)
        axes.set(title=f"task {i}", xlabel="input")
    all_axes[0].legend(fontsize=8)


def _draw_curves(part: Any, curves: dict[str, Tensor], name: str) -> None:
    axes = part.subplots(gridspec_kw=_MARGINS)
    draw_adaptation(axes, curves, name)
    axes.legend(fontsize=8)
    axes.set_title(f"adaptation, {len(next(iter(curves.values())))} tasks", fontsize=10)


def _draw_bars(part: Any, curves: dict[str, Tensor], name: str) -> None:
    axes = part.subplots(gridspec_kw=_MARGINS)
    found = {label: [x.item() for x in mean_and_ci95(values[:, 0])] for label, values in curves.items()}
    axes.bar(list(found), [mean for mean, _ in found.values()], yerr=[ci for _, ci in found.values()], width=0.5)
    axes.set_ylabel(f"{name}, mean and 95 % interval", fontsize=8)
    axes.set_title(f"{len(curves[_TRAINED])} tasks", fontsize=10)
    axes.grid(alpha=0.3, axis="y")


def _draw_histogram(part: Any, values: Tensor, name: str) -> None:
    axes = part.subplots(gridspec_kw=_MARGINS)
    mean, ci95 = (x.item() for x in mean_and_ci95(values))
    finite = values[torch.isfinite(values)].double()
    # An accuracy has few values, which bins of an equal width would share unevenly.
    different = torch.unique(finite)
    bins: Any = 30
    if 1 < len(different) <= 60:
        half = float((different[1:] - different[:-1]).min()) / 2
        bins = [*(different - half).tolist(), float(different[-1]) + half]
    axes.hist(finite.numpy(), bins=bins, color="C0", alpha=0.8)
    axes.axvline(mean, color="k", linestyle="--", label=f"mean {mean:.3f} ± {ci95:.3f}")
    axes.set(xlabel=f"{name} of a task", ylabel="tasks")
    axes.set_title(f"{len(values)} tasks", fontsize=10)
    axes.legend(fontsize=8)


def _draw_hardest(part: Any, row: RowResult) -> None:
    """The classes with the lowest accuracy, and what each is taken for most often."""
    right: dict[str, float] = defaultdict(float)
    queries: dict[str, int] = defaultdict(int)
    for found in row.classes:
        right[found.name] += found.accuracy * found.queries
        queries[found.name] += found.queries
    hardest = sorted(queries, key=lambda name: right[name] / queries[name])[:_MOST_CLASSES][::-1]
    axes = part.subplots(gridspec_kw=_MARGINS | {"left": 0.36})
    places, accuracies = range(len(hardest)), [right[name] / queries[name] for name in hardest]
    axes.barh(places, accuracies, color="C3", alpha=0.45)
    axes.set_yticks(places, [_short(name) for name in hardest])  # which may be alike
    for place, name in enumerate(hardest):
        wrong = [(count, other) for (true, other), count in row.confusion.items() if true == name != other]
        if wrong:
            axes.text(0.01, place, f"taken for {_short(max(wrong)[1])}", va="center", fontsize=6)
    axes.set(xlim=(0, 1), xlabel="query accuracy")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(f"hardest of {len(queries)} classes", fontsize=10)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"…{name[-17:]}"


def _log(logger: Logger, figure: Any, path: Path, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure("test", figure, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image("test", [str(path)], step=step)
