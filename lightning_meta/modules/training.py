"""Meta-training: one outer step of any algorithm, the same on any number of devices."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_meta.modules.checkpoints import AtomicCheckpointIO
from lightning_meta.modules.checks import check_callables, check_trainer, non_finite_gradient, non_finite_loss
from lightning_meta.modules.evaluation import EvaluatedModule
from lightning_meta.modules.outcome import Outcome
from lightning_meta.randomness import seeded
from lightning_meta.task import Task, map_tensors, number_of_tasks, tensors_of

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
OnNonfinite = Literal["raise", "skip"]


class TrainedModule(EvaluatedModule):
    """What modules do in meta-training, given their `meta_loss`: see `MetaModule` for the arguments."""

    objective = "query_loss"
    """What the value of `meta_loss` is called in the logs."""

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        gradient_clip_val: float | None,
        on_nonfinite: OnNonfinite,
        max_skipped_steps: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_callables(optimizer=optimizer, lr_scheduler=lr_scheduler)
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val must be positive or None, got {gradient_clip_val}.")
        if on_nonfinite not in ("raise", "skip"):
            raise ValueError(f"on_nonfinite must be 'raise' or 'skip', got {on_nonfinite!r}.")
        if type(max_skipped_steps) is not int or max_skipped_steps < 1:
            raise ValueError(f"max_skipped_steps must be a whole number of at least 1, got {max_skipped_steps!r}.")
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.gradient_clip_val = gradient_clip_val
        self.on_nonfinite = on_nonfinite
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        """How many outer steps were skipped in this training, because something was not finite."""
        self._skipped_in_a_row = 0
        self.tasks_together: int | None = None
        """How many tasks ran together in the last outer step of this training; 0 for one after another."""
        self.outcome: Outcome | None = None
        """What the last `meta_loss` made of its tasks, detached."""
        self.logs_this_step = False
        """Whether values that cost extra time are worth computing in this outer step."""

    @abstractmethod
    def meta_loss(self, tasks: Task) -> Tensor:
        """The scalar whose value is the mean loss of the adapted parameters and whose gradient is the meta-gradient."""

    @property
    def outer_step(self) -> int:
        """The number of the outer step, from 0; steps that were skipped count, too. Without a Trainer it is 0."""
        if self._trainer is None:
            return 0
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.total
        return int(progress.processed)

    @property
    def loss_scale(self) -> float:
        """What the Trainer scales losses by before it differentiates them: above 1 under `16-mixed`."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    @property
    def inner_loss_scale(self) -> float:
        """What inner losses are scaled by while they are differentiated.

        The square root of the outer loss's scale: the gradient of an inner gradient passes the inner graph with the
        outer scale divided by the inner one, so this keeps both of them alike away from zero.
        """
        return float(self.loss_scale**0.5)

    @property
    def _scaler(self) -> GradScaler | None:
        return None if self._trainer is None else getattr(self._trainer.precision_plugin, "scaler", None)

    def training_step(self, batch: Task, batch_idx: int) -> None:
        """One outer step."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        step = self.outer_step
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.logs_this_step = every > 0 and (step + 1) % every == 0
        self.outcome = None
        if self.seed is None:
            self.seed = torch.initial_seed()
        if self.tasks_together is None:
            rank_zero_info(
                f"task_parallel={self.task_map.task_parallel!r}: {self.task_map.describe(batch)} on each device."
            )
        self.tasks_together = self.task_map.together(batch)
        with seeded(self.device, self.seed, step, self.global_rank):
            loss = self.meta_loss(batch)
            outcome: Outcome | None = self.outcome  # a meta_loss of a user's own may leave none
            problem = non_finite_loss(loss, outcome, step, self.global_rank)
            optimizer.zero_grad()
            # Devices add up their gradients: so the problem of one reaches all, and they decide alike.
            self.manual_backward(loss if problem is None else loss * torch.nan)
        if self._update(optimizer, problem) and outcome is not None:
            self.carry(self._mean_over_devices(outcome.carried))
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        self._log_training(loss.detach(), outcome, number_of_tasks(batch))

    def _update(self, optimizer: Any, problem: str | None) -> bool:
        """Make the outer optimizer's step, unless something is not finite; whether it was made."""
        scaler = self._scaler
        if scaler is not None:  # it looks for what is not finite itself, and lowers its scale then
            before = scaler.get_scale()
            optimizer.step()
            skipped = scaler.get_scale() < before
            problem = problem or "A gradient is too large for float16."
        else:
            problem = problem or non_finite_gradient([p.grad for p in self.parameters()], self.outer_step)
            skipped = problem is not None
            if not skipped:
                optimizer.step()
            elif self.on_nonfinite == "raise":
                raise FloatingPointError(
                    f"{problem} Nothing was updated, and the last checkpoint stays as it is. (on_nonfinite='skip' "
                    "leaves out such steps.)"
                )
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        self.skipped_steps += int(skipped)
        if self._skipped_in_a_row > self.max_skipped_steps:
            raise FloatingPointError(
                f"{self._skipped_in_a_row} outer steps in a row were skipped, more than max_skipped_steps="
                f"{self.max_skipped_steps}. The last: {problem}"
            )
        return not skipped

    def _log_training(self, loss: Tensor, outcome: Outcome | None, tasks: int) -> None:
        """Log the means over the tasks of all devices; between the steps that are logged, over this device's own."""
        values = {self.objective: loss.unsqueeze(0), **({} if outcome is None else outcome.metrics)}
        means = self._mean_over_devices(values) if self.logs_this_step else {k: v.mean() for k, v in values.items()}
        if self._scaler is not None or self.on_nonfinite == "skip":
            means["skipped_steps"] = torch.tensor(float(self.skipped_steps))
        self.log_values("train", means, tasks)

    def _mean_over_devices(self, values: Any) -> Any:
        """The mean of tensors `(B, ...)` over the tasks of all devices, which have equally many; in one message."""
        means = [tensor.mean(0) for tensor in tensors_of(values)]
        if not means or self.trainer.world_size == 1:
            return map_tensors(lambda tensor: tensor.mean(0), values)
        message = self.trainer.strategy.reduce(torch.cat([mean.flatten().double() for mean in means]), reduce_op="mean")
        pieces = iter(torch.split(message, [mean.numel() for mean in means]))
        return map_tensors(lambda tensor: next(pieces).view(tensor.shape[1:]).to(tensor.dtype), values)

    def carry(self, mean: Any) -> None:
        """Keep the mean, over the tasks of all devices, of what `learn` returned as `Outcome.carried`."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the meta-gradient, here because it is unscaled by now under 16-bit precision."""
        self.clip_gradients(optimizer, self.gradient_clip_val, "norm")

    def outer_parameters(self) -> list[Any]:
        """What the outer optimizer is made from: the trainable parameters, or groups of them."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """The outer optimizer over all trainable parameters, and its scheduler.

        Raises:
            ValueError: One of them refuses its arguments, or is of a kind that meta-training cannot use.
        """
        try:
            optimizer = self.optimizer(self.outer_parameters())
        except (TypeError, ValueError) as error:
            raise ValueError(f"optimizer cannot be made from the parameters: {error}.") from error
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                "LBFGS evaluates the loss many times in a step, on the same tasks: give another optimizer."
            )
        if self.lr_scheduler is None:
            return optimizer
        try:
            scheduler = self.lr_scheduler(optimizer)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"lr_scheduler cannot be made from the optimizer: {error}.") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[pl.Callback]:
        """No callbacks; the first hook of a run, where settings of the Trainer that belong here are refused."""
        check_trainer(self.trainer, type(self).__name__)
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default, which is not atomic
            strategy.checkpoint_io = AtomicCheckpointIO()
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the number of skipped steps and how tasks are run, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["skipped_steps"] = self.skipped_steps
        checkpoint["vectorizes"] = self.task_map.vectorizes
        checkpoint["tasks_together"] = self.tasks_together

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the number of skipped steps and how tasks are run."""
        super().on_load_checkpoint(checkpoint)
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        self.task_map.vectorizes = checkpoint.get("vectorizes", True)
