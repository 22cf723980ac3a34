"""Settings of a Trainer and arguments of a module that do not go together with meta-learning, said in words."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.functional.losses import Loss, check_classes, is_cross_entropy
from lightning_meta.task import Examples, Task, are_classes, foreign_value, tensors_of


def check_trainer(trainer: pl.Trainer, module: str) -> None:
    """Refuse settings of the Trainer that the module `module` has its own for, or that meta-learning cannot use.

    Raises:
        ConfigurationError: `gradient_clip_val`, `accumulate_grad_batches` or `overfit_batches` is set, the strategy
            shards parameters, or they would be float16.
    """
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise ConfigurationError(
            f"{type(trainer.strategy).__name__} divides the parameters among devices, and the inner loop needs all of "
            "them on each. Use Trainer(strategy='ddp'); task_parallel='loop' or a chunk size saves memory."
        )
    if trainer.precision == "16-true":
        raise ConfigurationError(
            "precision='16-true' updates parameters in float16, where small steps are lost. Use precision='16-mixed' "
            "or 'bf16-mixed'."
        )
    overfit: float = getattr(trainer, "overfit_batches", 0)
    if overfit:
        raise ConfigurationError(
            f"Trainer(overfit_batches={overfit}) would see other tasks in every epoch: the stream of "
            "training tasks is endless. For the same few give a TaskDataModule whose tasks depend on number % k, or "
            "test on training data."
        )
    clip, accumulate = trainer.gradient_clip_val, trainer.accumulate_grad_batches
    if clip:
        raise ConfigurationError(
            f"Trainer(gradient_clip_val={clip}) has no effect on manual optimization. Give "
            f"{module}(gradient_clip_val={clip}) instead."
        )
    if accumulate != 1:
        raise ConfigurationError(
            f"Trainer(accumulate_grad_batches={accumulate}) has no effect on manual optimization. Raise the data "
            f"module's meta_batch_size instead; task_parallel='loop' or a chunk size of {module} keeps the memory of a "
            "large meta-batch small."
        )


def check_batch(batch: Any) -> None:
    """Refuse a batch that is not one of tasks.

    Raises:
        ArgumentTypeError: It is something else than a `Task`.
        ConfigurationError: It is a single task, without the dimension of tasks.
    """
    remedy = (
        "Meta-learning needs batches of tasks: a lightning_meta.Task of support and query Examples, such as an "
        "EpisodicDataModule makes of a labelled data set."
    )
    if not isinstance(batch, Task):
        raise ArgumentTypeError(f"The loader gives a {type(batch).__name__}. {remedy}")
    for part in batch:
        if not isinstance(part, Examples):
            raise ArgumentTypeError(f"A Task of the loader holds a {type(part).__name__}. {remedy}")
        for name in ("inputs", "targets"):
            foreign = foreign_value(getattr(part, name), name)
            if foreign is not None:
                raise ArgumentTypeError(
                    f"A Task of the loader holds {foreign}: only tensors can be divided among the tasks."
                )
        shapes = [tuple(tensor.shape) for tensor in tensors_of((part.inputs, part.targets))]
        if part is batch.support and not tensors_of(part.targets):
            raise ArgumentTypeError(f"A Task of the loader has no tensor among its support targets. {remedy}")
        if any(len(shape) < 2 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
            raise ConfigurationError(
                f"The tensors of a Task have the shapes {shapes}; each must begin with the number of tasks and the "
                "number of examples, (B, examples, ...). One task alone needs .unsqueeze(0); stack_tasks makes a batch "
                "of tasks of different sizes."
            )


def check_outputs(loss: Loss, predictions: Any, targets: Any, mask: Tensor | None, trainer: pl.Trainer | None) -> None:
    """Refuse a classifier whose outputs do not fit the tasks' classes.

    Without a running `trainer`, or where outputs are made for the classes of each task, these classes alone are looked
    at.

    Raises:
        ConfigurationError: The data module of `trainer` has more classes, or other ones in all splits, or a target has
            no output.
    """
    is_tensor = isinstance(predictions, Tensor)
    if not (is_cross_entropy(loss) and is_tensor and predictions.dim() == 3 and are_classes(targets)):
        return
    outputs = predictions.shape[2]
    data: Any = getattr(trainer, "datamodule", None)
    if trainer is not None and hasattr(data, "ways_of"):
        stages = {"validate": "val", "sanity_check": "val", "test": "test", "predict": "test"}
        split = stages.get(str(getattr(trainer.state.stage, "value", "")), "train")
        ways = data.ways_of(split)
        if ways is not None and (ways[1] > outputs or data.largest_way < outputs):
            prefix = "" if split == "train" else f"{split}_"
            shown = ways[1] if ways[0] == ways[1] else ways
            raise ConfigurationError(
                f"The network has {outputs} outputs, but the tasks have {prefix}n_way={shown} classes. Give both the "
                "same number: that of the largest task."
            )
    check_classes(outputs, targets, mask)


def check_callables(**functions: Any) -> None:
    """Refuse what has to be a function and is not.

    Raises:
        ArgumentTypeError: An `optimizer`, `lr_scheduler` or `loss` is an object or a class of the wrong kind.
    """
    for name, value in functions.items():
        wrong_kind = isinstance(value, type) if name.endswith("loss") else isinstance(value, nn.Module)
        if (value is not None or name == "optimizer") and (not callable(value) or wrong_kind):
            raise ArgumentTypeError(
                f"{name} must be callable, got {value!r}. Give an optimizer or a schedule as a function that makes "
                "it, such as lambda params: Adam(params, lr=1e-3), and a loss as a function of predictions and "
                "targets."
            )
