"""Errors for people: what is wrong, the value seen, and what to do."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lightning_meta.modules.outcome import Outcome


def check_network(network: nn.Module) -> None:
    """Refuse layers that meta-learning cannot use.

    Raises:
        ValueError: There is a `SyncBatchNorm`.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.SyncBatchNorm):
            raise ValueError(
                f"Layer {name!r} is a SyncBatchNorm, which cannot be differentiated twice. Tasks are normalized one by "
                "one here, so an ordinary BatchNorm is what you want on many devices too."
            )


def check_trainer(trainer: pl.Trainer, module: str) -> None:
    """Refuse settings of the Trainer that the module `module` has its own for, or that meta-learning cannot use.

    Raises:
        ValueError: `gradient_clip_val` or `accumulate_grad_batches` is set, the strategy shards parameters, or they
            would be float16.
    """
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise ValueError(
            f"{type(trainer.strategy).__name__} divides the parameters among devices, and the inner loop needs all of "
            "them on each. Use Trainer(strategy='ddp'); task_parallel='loop' or a chunk size saves memory."
        )
    if trainer.precision == "16-true":
        raise ValueError(
            "precision='16-true' updates parameters in float16, where small steps are lost. Use precision='16-mixed' "
            "or 'bf16-mixed'."
        )
    clip, accumulate = trainer.gradient_clip_val, trainer.accumulate_grad_batches
    if clip:
        raise ValueError(
            f"Trainer(gradient_clip_val={clip}) has no effect on manual optimization. Give "
            f"{module}(gradient_clip_val={clip}) instead."
        )
    if accumulate != 1:
        raise ValueError(
            f"Trainer(accumulate_grad_batches={accumulate}) has no effect on manual optimization. Raise the data "
            f"module's meta_batch_size instead; task_parallel='loop' or a chunk size of {module} keeps the memory of a "
            "large meta-batch small."
        )


def check_not_regression(predictions: Tensor, targets: Tensor) -> None:
    """Refuse cross-entropy over a single output, which is zero whatever is predicted.

    Raises:
        ValueError: Targets are real numbers and there is one output.
    """
    if targets.is_floating_point() and predictions.shape[-1] == 1:
        raise ValueError(
            f"The targets are real numbers ({targets.dtype}), but the loss is cross-entropy, the default. For "
            "regression give loss=torch.nn.functional.mse_loss."
        )


def check_same_shape(predictions: Tensor, targets: Tensor) -> None:
    """Refuse predictions and targets that an elementwise loss would broadcast against each other.

    Raises:
        ValueError: Shapes differ.
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"The network's outputs are {tuple(predictions.shape)}, but the targets are {tuple(targets.shape)} (tasks, "
            "examples, ...). Give both the same shape, for instance by targets.unsqueeze(-1) in the data."
        )


def check_outputs(outputs: int, targets: Tensor, trainer: pl.Trainer | None) -> None:
    """Refuse a classifier whose outputs do not fit the tasks' classes.

    Raises:
        ValueError: The data module of `trainer` has another number of classes, or a target has no output.
    """
    if trainer is not None:
        stages = {"validate": "val_", "sanity_check": "val_", "test": "test_", "predict": "test_"}
        prefix = stages.get(str(getattr(trainer.state.stage, "value", "")), "")
        n_way = getattr(getattr(trainer, "datamodule", None), f"{prefix}n_way", None)
        if n_way is not None and n_way != outputs:
            raise ValueError(
                f"The network has {outputs} outputs, but the tasks have {prefix}n_way={n_way} classes. Give both the "
                "same number."
            )
    largest, smallest = int(targets.max()), int(targets.min())
    if largest >= outputs or smallest < 0:
        raise ValueError(
            f"The network has {outputs} outputs, but the targets are classes {smallest} to {largest}. Classes of a "
            "task are numbered from 0, and each needs an output."
        )


def check_callables(**functions: Any) -> None:
    """Refuse what has to be a function and is none.

    Raises:
        TypeError: An `optimizer`, `lr_scheduler` or `loss` is an object or a class of the wrong kind.
    """
    for name, value in functions.items():
        wrong_kind = isinstance(value, type) if name == "loss" else isinstance(value, nn.Module)
        if (value is not None or name == "optimizer") and (not callable(value) or wrong_kind):
            raise TypeError(
                f"{name} must be callable, got {value!r}. Give an optimizer or a schedule as a function that makes "
                "it, such as lambda params: Adam(params, lr=1e-3), and a loss as a function of predictions and "
                "targets."
            )


def non_finite_loss(loss: Tensor, outcome: Outcome | None, step: int, rank: int) -> str | None:
    """Say what about a loss is not finite.

    Args:
        loss: The meta-loss, a scalar.
        outcome: What it was made of, with the tasks' losses and their support losses before each inner step, if known.
        step: The outer step.
        rank: The process.

    Returns:
        A message that names the tasks; `None` if all is finite.
    """
    inner_losses = None if outcome is None else outcome.inner_losses
    if torch.isfinite(loss) and (inner_losses is None or torch.isfinite(inner_losses).all()):
        return None
    where = ""
    if outcome is not None:
        inner = ~torch.isfinite(outcome.inner_losses)
        bad = ~torch.isfinite(outcome.losses) | inner.any(1)
        where = f" in tasks {bad.nonzero().flatten().tolist()} of this meta-batch"
        if inner.any():
            where += f", first at inner step {int(inner.any(0).nonzero()[0])} of {inner.shape[1]}"
    return (
        f"The loss is {loss.item()} at outer step {step} (rank {rank}){where}. A smaller inner or outer learning rate, "
        "gradient_clip_val, or a look at these inputs may help."
    )


def non_finite_gradient(gradients: list[Tensor | None], step: int) -> str | None:
    """Say that a meta-gradient is not finite; `None` if it is."""
    present = [gradient.norm() for gradient in gradients if gradient is not None]
    if not present or torch.isfinite(torch.stack(present)).all():
        return None
    return (
        f"The meta-gradient is not finite at outer step {step}, though the loss on this device is. Is the inner "
        "learning rate too large? Or an operation in the network or the loss has no finite derivative here, such as "
        "the square root of 0."
    )


def check_updated(optimizer: nn.Module, params: dict[str, Tensor], result: Any) -> None:
    """Refuse what an inner optimizer returns if it is not the parameters that it was given, and a state.

    Raises:
        TypeError: It is not a pair of a dict and a state.
        ValueError: A parameter is missing, added, or of another shape.
    """
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], dict):
        raise TypeError(
            f"{type(optimizer).__name__}.update must return two things, the new parameters by name and the new state; "
            f"it returned a {type(result).__name__}."
        )
    updated = result[0]
    wrong = sorted(params.keys() ^ updated.keys()) or [n for n in params if params[n].shape != updated[n].shape]
    if wrong:
        raise ValueError(
            f"{type(optimizer).__name__}.update must return every parameter that it was given, under its name and of "
            f"its shape; it does not for {', '.join(wrong)}."
        )


def check_not_in_place(optimizer: nn.Module, versions: list[int], params: dict[str, Tensor]) -> None:
    """Refuse an inner optimizer that has written into the parameters that it was given.

    Args:
        optimizer: The inner optimizer.
        versions: How often each parameter had been written to before.
        params: The parameters.

    Raises:
        RuntimeError: It has.
    """
    changed = [name for (name, p), v in zip(params.items(), versions, strict=True) if p._version != v]
    if changed:
        raise RuntimeError(
            f"{type(optimizer).__name__}.update has written in place into {', '.join(changed)}, which the network and "
            "the other tasks share, so the network is not what it was. Return new tensors, such as param - lr * grad."
        )


def check_support_set(inputs: list[Any], targets: Tensor) -> None:
    """Refuse a support set without one target for each input, or of raw images.

    Args:
        inputs: The tensors of the inputs.
        targets: The targets.

    Raises:
        TypeError: They are no tensors.
        ValueError: Lengths differ, there is nothing, or inputs are uint8.
    """
    if not inputs or not isinstance(targets, Tensor):
        raise TypeError("Inputs and targets of a support set must be tensors; torch.as_tensor makes them.")
    if any(tensor.dtype == torch.uint8 for tensor in inputs):
        raise ValueError("The inputs are uint8 images. Data modules divide those by 255: give inputs / 255 here.")
    lengths = [len(tensor) for tensor in inputs]
    if not len(targets) or any(length != len(targets) for length in lengths):
        raise ValueError(f"A support set needs one target per input: got {lengths} inputs and {len(targets)} targets.")


def check_steps(name: str, steps: int) -> int:
    """Refuse a negative number of steps.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is negative.
    """
    if type(steps) is not int:
        raise TypeError(f"{name} must be a whole number, got {steps!r}.")
    if steps < 0:
        raise ValueError(f"{name} must be 0 or more, got {steps}.")
    return steps


def check_meta_parameters(module: str, optimizer: nn.Module) -> None:
    """Refuse an inner optimizer that has something to learn, for an algorithm whose meta-gradient has no part for it.

    Raises:
        ValueError: `optimizer` has parameters; `module` is the name of the algorithm.
    """
    if any(p.requires_grad for p in optimizer.parameters()):
        raise ValueError(
            f"{module} has no gradient for what {type(optimizer).__name__} learns. Use MAMLModule with "
            "it, or an inner optimizer without parameters, such as SGD or Adam."
        )


def check_support_classes(targets: Tensor, n_way: int | None = None) -> int:
    """Refuse tasks with a class that has no support example, and count the classes.

    Args:
        targets: Those of the support sets, `(B, examples)`.
        n_way: How many classes there are to be; as many as the largest target says if `None`.

    Returns:
        The number of classes, `N`.

    Raises:
        ValueError: In some task a class has no example, or targets are not the numbers of classes.
    """
    if targets.is_floating_point() or targets.min() < 0:
        raise ValueError(f"Prototypes need class numbers from 0 for targets, got {targets.dtype} from {targets.min()}.")
    largest = int(targets.max())
    n_way = largest + 1 if n_way is None else n_way
    if largest >= n_way:
        raise ValueError(
            f"A support set has class {largest}, but the network's head has {n_way} outputs. Classes of a task are "
            "numbered from 0; give both the same number."
        )
    missing = (F.one_hot(targets, n_way).sum(1) == 0).nonzero()
    if len(missing):
        raise ValueError(
            f"A task has no support example of class {int(missing[0, 1])}, of {n_way} classes, so there is no "
            "prototype of it. Every class needs at least one, and a network with a head as many outputs as classes."
        )
    return n_way
