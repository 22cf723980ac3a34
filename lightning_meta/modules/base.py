"""The base of every algorithm: outer loop, evaluation and logs. What it does with a task is up to subclasses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_meta.functional.learner import Learner, select_parameters
from lightning_meta.functional.meta_gradient import surrogate, touch
from lightning_meta.functional.task_map import TaskMap, TaskParallel
from lightning_meta.hyperparameters import PlainHyperparameters, differences
from lightning_meta.metrics import TaskStatistics
from lightning_meta.modules.checks import (
    check_finite,
    check_finite_gradient,
    check_network,
    check_not_regression,
    check_outputs,
    check_same_shape,
    check_trainer,
)
from lightning_meta.modules.outcome import Outcome, joined, with_gradients
from lightning_meta.task import Task, map_tensors, number_of_tasks, tensors_of

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
Loss = Callable[[Any, Tensor], Tensor]

# Losses that would silently broadcast targets of another shape.
ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
ELEMENTWISE_CLASSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class MetaModule(PlainHyperparameters, pl.LightningModule, ABC):
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

    Raises:
        ValueError: An argument does not make sense; the message says which and what to do.
        TypeError: `network` is not a module, or what has to be callable is not.
    """

    objective = "query_loss"
    """What the value of `meta_loss` is called in the logs."""

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
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be an nn.Module, got {network!r}.")
        for name, value in {"optimizer": optimizer, "lr_scheduler": lr_scheduler, "loss": loss}.items():
            wrong_kind = isinstance(value, type) if name == "loss" else isinstance(value, nn.Module)
            if value is not None and (not callable(value) or wrong_kind):
                raise TypeError(
                    f"{name} must be callable, got {value!r}. Give an optimizer or a schedule as a function that makes "
                    "it, such as lambda params: Adam(params, lr=1e-3), and a loss as a function of predictions and "
                    "targets."
                )
        check_network(network)
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val must be positive or None, got {gradient_clip_val}.")
        self.network = network
        self.loss: Loss = F.cross_entropy if loss is None else loss
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.gradient_clip_val = gradient_clip_val
        self.adapt_only = adapt_only
        self._task_map = TaskMap(network, self.select_adapted(), task_parallel)
        self.statistics = nn.ModuleDict({"val": TaskStatistics(), "test": TaskStatistics()})
        self.outcome: Outcome | None = None
        """What the last `meta_loss` made of its tasks, detached."""
        self.logs_this_step = False
        """Whether values that cost extra time are worth computing in this outer step."""
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

    @abstractmethod
    def evaluate(self, learner: Learner, tasks: Task) -> Outcome:
        """Adapt to a batch of tasks and measure; nothing is differentiated afterwards."""

    @abstractmethod
    def predict(self, learner: Learner, tasks: Task) -> Tensor:
        """Adapt to a batch of tasks and predict their query sets: `(B, queries, ...)`."""

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
        losses: Tensor = learner.over_tasks(self.loss)(predictions, targets)
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

    # Meta-training.

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

        def run(learner: Learner, chunk: Task) -> tuple[Outcome, tuple[Tensor, ...] | None]:
            outcome = self.learn(learner, chunk)
            if whole and learner.vectorized:
                return outcome, None
            # The graph of this chunk is freed here; only its gradient is kept.
            gradients = torch.autograd.grad(outcome.losses.sum() / total, trainable, materialize_grads=True)
            return outcome._replace(losses=outcome.losses.detach()), gradients

        outcomes, meta_gradient = [], None
        for outcome, gradients in self.task_map(run, tasks):
            outcomes.append(outcome)
            if gradients is not None:
                meta_gradient = gradients if meta_gradient is None else tuple(map(torch.add, meta_gradient, gradients))
        loss = torch.cat([outcome.losses for outcome in outcomes]).mean()
        self.outcome = joined(outcomes)
        return touch(loss, trainable) if meta_gradient is None else surrogate(loss, trainable, meta_gradient)

    def training_step(self, batch: Task, batch_idx: int) -> None:
        """One outer step."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.outcome = None
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.logs_this_step = every > 0 and (self.global_step + 1) % every == 0
        loss = self.meta_loss(batch)
        outcome: Outcome | None = self.outcome  # a meta_loss of a user's own may leave none
        losses, inner_losses = (None, None) if outcome is None else (outcome.losses, outcome.inner_losses)
        check_finite(loss, losses, inner_losses, self.global_step, self.global_rank)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if outcome is not None:
            self.carry(self._mean_over_devices(outcome.carried))
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        metrics = {} if outcome is None else {name: value.mean() for name, value in outcome.metrics.items()}
        self._log("train", {self.objective: loss.detach(), **metrics}, number_of_tasks(batch))

    def _mean_over_devices(self, carried: Any) -> Any:
        """The mean of tensors `(B, ...)` over the tasks of all devices, which have equally many; in one message."""
        means = [tensor.mean(0) for tensor in tensors_of(carried)]
        if not means or self.trainer.world_size == 1:
            return map_tensors(lambda tensor: tensor.mean(0), carried)
        message = self.trainer.strategy.reduce(torch.cat([mean.flatten().double() for mean in means]), reduce_op="mean")
        pieces = iter(torch.split(message, [mean.numel() for mean in means]))
        return map_tensors(lambda tensor: next(pieces).view(tensor.shape[1:]).to(tensor.dtype), carried)

    def carry(self, mean: Any) -> None:
        """Keep the mean, over the tasks of all devices, of what `learn` returned as `Outcome.carried`."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Check and clip the meta-gradient, here because it is unscaled by now under 16-bit precision."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        has_scaler = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # then it skips the step itself
        if not has_scaler:
            check_finite_gradient(gradients, self.global_step)
        self.clip_gradients(optimizer, self.gradient_clip_val, "norm")

    def outer_parameters(self) -> list[Any]:
        """What the outer optimizer is made from: the trainable parameters, or groups of them."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """The outer optimizer over all trainable parameters, and its scheduler."""
        optimizer = self.optimizer(self.outer_parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}

    def on_fit_start(self) -> None:
        """Check the network again: `Trainer(sync_batchnorm=True)` has converted its layers by now."""
        check_network(self.network)

    def configure_callbacks(self) -> list[pl.Callback]:
        """No callbacks; the first hook of a run, where settings of the Trainer that belong here are refused."""
        check_trainer(self.trainer, type(self).__name__)
        return []

    # Evaluation.

    def validation_step(self, batch: Task, batch_idx: int) -> None:
        """Adapt to a batch of validation tasks and measure."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Task, batch_idx: int) -> None:
        """Adapt to a batch of test tasks and measure."""
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Task, batch_idx: int) -> Tensor:
        """Predictions for the query sets of a batch of tasks: `(B, queries, ...)`."""
        with with_gradients(batch) as tasks:
            return torch.cat(list(self.task_map(self.predict, tasks))).detach()

    def _evaluation_step(self, stage: str, batch: Task) -> None:
        with with_gradients(batch) as tasks:
            outcome = joined(list(self.task_map(self.evaluate, tasks)))
        # Outside of the block, since the metric's state was reset under the grad mode that holds here.
        self._statistics(stage).update({"query_loss": outcome.losses, **outcome.metrics})

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation may have left."""
        self._statistics("val").reset()

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted test may have left."""
        self._statistics("test").reset()

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation tasks."""
        self._log_statistics("val")
        scheduler = (
            self.lr_schedulers() if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking else None
        )
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.trainer.callback_metrics["val/query_loss"])

    def on_test_epoch_end(self) -> None:
        """Log the means over all test tasks."""
        self._log_statistics("test")

    def _statistics(self, stage: str) -> TaskStatistics:
        return cast(TaskStatistics, self.statistics[stage])

    def _log_statistics(self, stage: str) -> None:
        for name, (mean, ci95) in self._statistics(stage).compute().items():
            self._log(stage, {name: mean.float()})
            if name.startswith("query_") and not name.endswith("_before"):
                self._log(stage, {f"{name}_ci95": ci95.float()})

    def _log(self, stage: str, values: dict[str, Tensor], tasks: int | None = None) -> None:
        for name, value in values.items():
            shown = name in ("query_loss", "query_accuracy")
            # Statistics are the same on every device already; to synchronize them is a formality.
            self.log(f"{stage}/{name}", value, prog_bar=shown, batch_size=tasks, sync_dist=stage != "train")

    def objects(self) -> dict[str, str]:
        """The loss, and other objects that are no plain hyperparameters, described in words."""
        return {"loss": getattr(self.loss, "__qualname__", str(self.loss))}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the objects, so that loading with others does not go unnoticed."""
        checkpoint["objects"] = self.objects()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the hyperparameters in which a checkpoint differs; those given now are used."""
        changed = differences(checkpoint.get("hyper_parameters", {}), self.hparams)
        changed += differences(checkpoint.get("objects", {}), self.objects())
        datamodule = getattr(self._trainer, "datamodule", None)
        if datamodule is not None:
            changed += differences(checkpoint.get("datamodule_hyper_parameters", {}), datamodule.hparams)
        if changed:
            rank_zero_warn(
                "The checkpoint was written with other hyperparameters; those of now are used (but a training that is "
                "resumed restores the state of its optimizer and its schedule):\n  " + "\n  ".join(changed)
            )
