"""Figures of a task and of what adaptation does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.metrics import mean_and_ci95
from lightning_meta.task import Examples, Task, map_tensors

_MOST_QUERIES = 10
"""Of each class."""
_GAP, _TITLE = 0.4, 0.3
"""The space between support and query set, and that of the titles, in images."""


def plot_episode(task: Task, path: str | Path, predictions: Tensor | None = None) -> None:
    """Draw the support set and the query set of an image classification task, a row for each class.

    Classes may have different numbers of examples. Padding, which the masks of the task tell, is not drawn. Images with
    values outside of 0 to 1, such as normalized ones, are scaled to that, each channel by its range in the task.

    Args:
        task: One task, without a task dimension: images `(examples, C, H, W)` and labels `(examples,)`.
        path: A PNG file to write.
        predictions: Logits `(queries, N)`, for the padding of the query set, too, or without it; wrong query images get
            a red frame.

    Raises:
        ConfigurationError: There are no examples, or another number of predictions than of query examples.
    """
    from matplotlib.figure import Figure

    rows, columns = episode_size(task)
    figure = Figure(figsize=(0.75 * columns, 0.75 * rows))
    draw_episode(figure, task, predictions)
    figure.savefig(path, dpi=150)


def episode_size(task: Task) -> tuple[float, float]:
    """Rows and columns of images that `draw_episode` draws, with the space around them.

    Raises:
        ConfigurationError: There are no examples.
    """
    classes, shots, shown = _grid(task)
    return len(classes) + _TITLE, shots + shown + _GAP


def _grid(task: Task) -> tuple[list[int], int, int]:
    """The classes of a task, and the most support and query images of one."""
    support, query = _without_padding(task.support), _without_padding(task.query)
    classes = torch.unique(torch.cat([support.targets, query.targets])).tolist()
    if not classes:
        raise ConfigurationError("The task has no examples to draw.")
    shots, shown = (max(int((part.targets == label).sum()) for label in classes) for part in (support, query))
    return classes, shots, min(shown, _MOST_QUERIES)


def draw_episode(figure: Any, task: Task, predictions: Tensor | None = None) -> None:
    """Draw an episode into a figure, or a part of one: see `plot_episode`."""
    predicted = _predicted_labels(task.query, predictions)
    support, query = _without_padding(task.support), _without_padding(task.query)
    classes, shots, shown = _grid(task)
    of_support, of_query = _pixels(support.inputs, query.inputs)
    columns, gap, title_height = shots + shown, _GAP, _TITLE
    height = len(classes) + title_height
    grid = {"wspace": 0.1, "hspace": 0.1, "left": 0.01, "right": 0.99, "bottom": 0.01, "top": 1 - title_height / height}
    ratios = [*[1] * shots, gap, *[1] * shown]
    axes = figure.subplots(len(classes), columns + 1, squeeze=False, width_ratios=ratios, gridspec_kw=grid)
    for ax in axes.flat:
        ax.axis("off")
    for row, label in enumerate(classes):
        for ax, i in zip(axes[row], _places(support, label), strict=False):
            _draw(ax, of_support[i], wrong=False)
        for ax, i in zip(axes[row][shots + 1 :], _places(query, label), strict=False):
            _draw(ax, of_query[i], wrong=predicted is not None and predicted[i] != label)
    note = "" if predictions is None else " (red: predicted wrongly)"
    for column, count, title in ((0, shots, "support"), (shots + 1, shown, f"query{note}")):
        if count:
            axes[0][column].set_title(title, loc="left", fontsize=9)


def _without_padding(examples: Examples) -> Examples:
    mask = examples.mask
    if mask is None:
        return examples
    return Examples(map_tensors(lambda t: t[mask], examples.inputs), examples.targets[mask])


def _predicted_labels(query: Examples, predictions: Tensor | None) -> list[int] | None:
    """The label predicted for each query example that there is."""
    if predictions is None:
        return None
    places = len(query.targets)
    there = places if query.mask is None else int(query.mask.sum())
    if len(predictions) not in (places, there):
        raise ConfigurationError(f"There are {len(predictions)} predictions for {there} query examples.")
    if query.mask is not None and len(predictions) == places:
        predictions = predictions[query.mask]
    labels: list[int] = predictions.argmax(-1).tolist()
    return labels


def _places(examples: Examples, label: int) -> list[int]:
    """Where the examples of a class are."""
    places: list[int] = (examples.targets == label).nonzero().flatten().tolist()
    return places


def _pixels(*parts: Tensor) -> list[Tensor]:
    """Images `(examples, C, H, W)` as floats in [0, 1]."""
    found = [part.float().cpu() / (255 if part.dtype == torch.uint8 else 1) for part in parts]
    of_channels = torch.cat([part.transpose(0, 1).flatten(1) for part in found], 1)
    least, most = of_channels.min(1).values, of_channels.max(1).values
    if bool((least >= 0).all()) and bool((most <= 1).all()):
        return found
    least, size = least.view(-1, 1, 1), (most - least).clamp(min=1e-12).view(-1, 1, 1)
    return [(part - least) / size for part in found]


def without_normalization(task: Task, datamodule: Any, split: str = "test") -> Task:
    """The task as it was before a data module's transforms normalized its images.

    A `Normalize` in the network needs none of this: its inputs are the images.

    Args:
        task: One task, or a batch of them: images `(..., C, H, W)`.
        datamodule: Its `transforms` say what was done to support and query examples; none if it has no such attribute.
        split: The split of the task.
    """
    pair = getattr(datamodule, "transforms", {}).get(split, (None, None))
    return Task(*(_undone(part, transform) for part, transform in zip(task, pair, strict=True)))


def _undone(part: Examples, transform: Any) -> Examples:
    inputs = part.inputs
    for layer in reversed([step for step in _steps(transform) if _normalizes(step)]):
        mean, std = (torch.as_tensor(v, dtype=inputs.dtype, device=inputs.device) for v in (layer.mean, layer.std))
        inputs = inputs * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
        inputs = inputs.clamp(0, 1)  # of rounding
    return part._replace(inputs=inputs)


def _steps(transform: Any) -> list[Any]:
    inner = list(transform) if isinstance(transform, nn.Sequential) else getattr(transform, "transforms", None)
    return [transform] if inner is None else [step for each in inner for step in _steps(each)]


def _normalizes(layer: Any) -> bool:
    return type(layer).__name__ == "Normalize" and hasattr(layer, "mean") and hasattr(layer, "std")


def _draw(ax: Any, pixels: Tensor, wrong: bool) -> None:
    ax.axis("on")
    ax.set(xticks=[], yticks=[])
    ax.imshow(pixels.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray_r", vmin=0, vmax=1)
    for spine in ax.spines.values():
        spine.set(color="red" if wrong else "lightgray", linewidth=2 if wrong else 0.8)


def plot_adaptation(curves: Mapping[str, Tensor], path: str | Path, metric: str = "query accuracy") -> None:
    """Draw a metric over inner steps: the mean over tasks and its 95 % interval.

    Args:
        curves: For each label values `(tasks, steps + 1)`.
        path: A PNG file to write.
        metric: What the values are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    draw_adaptation(figure.subplots(), curves, metric)
    figure.savefig(path, dpi=150)


def draw_adaptation(axes: Any, curves: Mapping[str, Tensor], metric: str) -> None:
    """Draw a metric over inner steps into axes: see `plot_adaptation`."""
    from matplotlib.ticker import MaxNLocator

    for label, values in curves.items():
        mean, ci95 = (x.cpu().numpy() for x in mean_and_ci95(values))
        steps = range(len(mean))
        axes.plot(steps, mean, marker="o", markersize=3, label=label)
        axes.fill_between(steps, mean - ci95, mean + ci95, alpha=0.2)
    axes.set(xlabel="inner steps")
    axes.set_ylabel(f"{metric}, mean and 95 % interval", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
