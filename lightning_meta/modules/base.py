"""The base of every algorithm: what a network and a loss make of tasks. The rest is up to subclasses."""

from abc import abstractmethod
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.optim import Adam

from lightning_meta.functional.compilation import CompiledFunction
from lightning_meta.functional.learner import Learner, select_parameters
from lightning_meta.functional.losses import losses_of_tasks
from lightning_meta.functional.meta_gradient import surrogate, touch
from lightning_meta.functional.scaling import scaled_gradients
from lightning_meta.functional.task_map import TaskMap, TaskParallel
from lightning_meta.modules.checks import (
    check_callables,
    check_network,
    check_not_regression,
    check_outputs,
    check_same_shape,
)
from lightning_meta.modules.outcome import Outcome, joined
from lightning_meta.modules.training import LRSchedulerCallable, OnNonfinite, OptimizerCallable, TrainedModule
from lightning_meta.task import Task, map_tensors, number_of_tasks, tensors_of

Loss = Callable[[Any, Tensor], Tensor]

# Losses that would silently broadcast targets of another shape.
ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
ELEMENTWISE_CLASSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class MetaModule(TrainedModule):
    """Base of the meta-learning algorithms, trained by Lightning's `Trainer` under manual optimization.

    A subclass says what happens to a batch of tasks: `learn` in meta-training, `evaluate` and `predict` afterwards.
    Batches are `Task`s with a leading task dimension `B`. Log keys are `{train,val,test}/query_accuracy`,
    `.../query_loss`, `.../support_loss`, with `_before` for values before adaptation; in validation and test they are
    means over all tasks, and `_ci95` is the half-width of their 95 % interval.

    Args:
        network: Called as `network(inputs)`; found again as `module.network`.
        adapt_only: Which parameters the inner loop changes: see `select_parameters`.
        loss: Maps predictions and targets of one task to a scalar; cross-entropy if `None`.
        optimizer: Makes the outer optimizer from the trainable parameters.
        lr_scheduler: Makes its scheduler, stepped once an outer step (`ReduceLROnPlateau`: after each validation, on
            `val/query_loss`).
        gradient_clip_val: Largest norm of the meta-gradient.
        task_parallel: How the tasks of a batch are run: see `TaskMap`.
        on_nonfinite: What to do where a loss or a gradient is not finite, on any device: `"raise"` an error, or
            `"skip"` the outer step, counted as `train/skipped_steps`. Under `16-mixed`, steps whose gradients are too
            large for float16 are always skipped.
        max_skipped_steps: How many outer steps in a row may be skipped before it is an error.
        compile: Whether outer steps are compiled by `torch.compile`, which takes a while and needs a C++ compiler: much
            faster for small networks, on a CPU slower for convolutions. Where it cannot be, a warning says why.

    Raises:
        ValueError: An argument does not make sense; the message says which and what to do.
        TypeError: `network` is not a module, or what has to be callable is not.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        adapt_only: str | list[str] | None = None,
        loss: Loss | None = None,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        task_parallel: TaskParallel = "auto",
        on_nonfinite: OnNonfinite = "raise",
        max_skipped_steps: int = 20,
        compile: bool = False,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, gradient_clip_val, on_nonfinite, max_skipped_steps)
        self.save_hyperparameters()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be an nn.Module, got {network!r}.")
        check_callables(loss=loss)
        check_network(network)
        self.network = network
        self.loss: Loss = F.cross_entropy if loss is None else loss
        self.adapt_only = adapt_only
        self._task_map = TaskMap(network, self.select_adapted(), task_parallel)
        self.compiles = compile
        self._program = CompiledFunction()
        self._checked: set[tuple[Any, int, int]] = set()

    @property
    def task_map(self) -> TaskMap:
        """Runs functions over the tasks of a batch, with the network that is `network` now."""
        if self._task_map.network is not self.network:
            self._task_map = TaskMap(self.network, self.select_adapted(), self._task_map.task_parallel)
        return self._task_map

    def select_adapted(self) -> tuple[str, ...]:
        """Names of the network's parameters that the inner loop is to change: those that `adapt_only` means."""
        return select_parameters(self.network, self.adapt_only)

    @property
    def adapted_names(self) -> tuple[str, ...]:
        """Names of the network's parameters that the inner loop changes."""
        return self.task_map.names

    # What an algorithm does with tasks.

    @abstractmethod
    def learn(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt to a batch of tasks so that the mean of the losses has the meta-gradient for its gradient."""

    def task_losses(self, learner: Learner, predictions: Tensor, targets: Tensor) -> Tensor:
        """The loss of each task.

        Args:
            learner: Runs functions over tasks.
            predictions: `(B, examples, ...)`.
            targets: `(B, examples, ...)`.

        Returns:
            `(B,)` losses.

        Raises:
            ValueError: The network's outputs do not fit the tasks' classes.
        """
        self._check_outputs(predictions, targets)
        losses = losses_of_tasks(self.loss, learner, predictions, targets)
        if losses.dim() != 1:
            raise ValueError(f"The loss of one task must be a scalar, but has the shape {tuple(losses.shape[1:])}.")
        return losses

    def _check_outputs(self, predictions: Any, targets: Tensor) -> None:
        """Compare outputs with classes; the data is looked at once for every shape."""
        if self.loss in ELEMENTWISE or isinstance(self.loss, ELEMENTWISE_CLASSES):
            check_same_shape(predictions, targets)
        is_cross_entropy = self.loss is F.cross_entropy or isinstance(self.loss, nn.CrossEntropyLoss)
        if is_cross_entropy and not isinstance(predictions, Tensor):
            raise TypeError(
                f"{type(self.network).__name__} returned a {type(predictions).__name__}. For cross-entropy it must "
                "return one tensor of logits: wrap it, or give a loss that takes what it returns."
            )
        if not is_cross_entropy or predictions.dim() != 3:
            return
        check_not_regression(predictions, targets)
        stage = None if self._trainer is None else self._trainer.state.stage
        case = (stage, predictions.shape[2], targets.shape[1])
        if case not in self._checked and not targets.is_floating_point():
            check_outputs(predictions.shape[2], targets, self._trainer)
            self._checked.add(case)

    def task_metrics(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Metrics of each task besides the loss: the accuracy, where targets are class numbers. Override for others.

        Args:
            predictions: `(B, examples, ...)`.
            targets: `(B, examples, ...)`.

        Returns:
            For each metric `(B,)` values.
        """
        if targets.is_floating_point():
            return {}
        return {"accuracy": (predictions.argmax(-1) == targets).float().flatten(1).mean(1)}

    def meta_loss(self, tasks: Task) -> Tensor:
        """The scalar whose value is the mean loss of the adapted parameters and whose gradient is the meta-gradient.

        Needs no Trainer. It requires grad through every trainable parameter and never writes to `.grad`.

        Args:
            tasks: A batch of `B` tasks.

        Returns:
            A scalar; `.backward()` leaves the meta-gradient, averaged over tasks, in `.grad`.
        """
        trainable = [p for p in self.parameters() if p.requires_grad]
        total = number_of_tasks(tasks)
        whole = self.task_map.together(tasks) == total

        key = self.compile_key() if self.compiles else None

        def run(learner: Learner, chunk: Task) -> tuple[Outcome, tuple[Tensor, ...] | None]:
            if key is not None:
                return self._compiled_gradient(learner, chunk, total, key)
            outcome = self.learn(learner, chunk)
            if whole and learner.vectorized:
                return outcome, None
            # The graph of this chunk is freed here; only its gradient is kept.
            gradients = scaled_gradients(outcome.losses.sum() / total, trainable, self.loss_scale)
            return outcome._replace(losses=outcome.losses.detach()), gradients

        outcomes, meta_gradient = [], None
        for outcome, gradients in self.task_map(run, tasks):
            outcomes.append(outcome)
            if gradients is not None:
                meta_gradient = gradients if meta_gradient is None else tuple(map(torch.add, meta_gradient, gradients))
        loss = torch.cat([outcome.losses for outcome in outcomes]).mean()
        self.outcome = joined(outcomes)
        return touch(loss, trainable) if meta_gradient is None else surrogate(loss, trainable, meta_gradient)

    def compile_key(self) -> Hashable | None:
        """What a compiled outer step depends on besides the module's parameters, its buffers and the tasks.

        For every new key it is compiled anew. `None` says that it depends on what is different in every step, so that
        it is not compiled. Override it where `learn` does something else from some outer step on.
        """
        if self.loss_scale != 1:
            return None
        modes = tuple(layer.training for layer in self.modules())
        trainable = tuple(p.requires_grad for p in self.parameters())
        return modes, trainable, self.logs_this_step, self.loss, tuple(self.objects().items())

    def _compiled_gradient(
        self, learner: Learner, tasks: Task, total: int, key: Hashable
    ) -> tuple[Outcome, tuple[Tensor, ...]]:
        """The outcome of a chunk of tasks, and its part of the meta-gradient of `total`, by one compiled program."""
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        trainable = {name for name, p in self.named_parameters() if p.requires_grad}

        def function(tensors: list[Tensor]) -> tuple[Outcome, tuple[Tensor, ...]]:
            given = iter(tensors)
            state = {name: next(given).detach().requires_grad_(name in trainable) for name in own}
            with torch.enable_grad(), _reparametrize_module(self, state, tie_weights=True):
                outcome = self.learn(learner, map_tensors(lambda _: next(given), tasks))
                wanted = [state[name] for name in own if name in trainable]
                gradients = scaled_gradients(outcome.losses.sum() / total, wanted)
            return outcome._replace(losses=outcome.losses.detach()), gradients

        key = (key, learner.vectorized, total)
        result: tuple[Outcome, tuple[Tensor, ...]] = self._program(
            function, [*(t.detach() for t in own.values()), *tensors_of(tasks)], key
        )
        return result

    def on_fit_start(self) -> None:
        """Check the network again: `Trainer(sync_batchnorm=True)` has converted its layers by now."""
        check_network(self.network)

    def objects(self) -> dict[str, str]:
        """The loss, and other objects that are no plain hyperparameters, described in words."""
        return {"loss": getattr(self.loss, "__qualname__", str(self.loss))}
