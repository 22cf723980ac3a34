"""The outer step of any algorithm, the same on any number of devices."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.amp import GradScaler

from lightning_meta.algorithms.base import Outcome
from lightning_meta.errors import ConfigurationError, NotFiniteError, derivatives_explained
from lightning_meta.modules.evaluation import collected
from lightning_meta.modules.optimizers import step_schedulers
from lightning_meta.modules.trainer_checks import check_batch
from lightning_meta.randomness import seeded
from lightning_meta.task import Task, map_tensors, number_of_tasks, tensors_of

if TYPE_CHECKING:
    from lightning_meta.modules.meta_module import MetaModule

OnNonfinite = Literal["raise", "skip"]


class OuterStep:
    """Makes outer steps: collects data, guards against what is not finite, and moves the parameters.

    Args:
        gradient_clip_val: Largest norm of the meta-gradient.
        per_batch: How many outer steps are made on each batch of tasks.
        on_nonfinite: What to do where a loss or a gradient is not finite, on any device: `"raise"` an error, or
            `"skip"` the outer step, counted as `train/skipped_steps`. Under `16-mixed`, steps whose gradients are too
            large for float16 are always skipped.
        max_skipped_steps: How many outer steps in a row may be skipped before it is an error.

    Raises:
        ConfigurationError: One of them does not make sense.
    """

    def __init__(
        self, gradient_clip_val: float | None, per_batch: int, on_nonfinite: OnNonfinite, max_skipped_steps: int
    ) -> None:
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ConfigurationError(f"gradient_clip_val must be positive or None, got {gradient_clip_val}.")
        if on_nonfinite not in ("raise", "skip"):
            raise ConfigurationError(f"on_nonfinite must be 'raise' or 'skip', got {on_nonfinite!r}.")
        for name, count in (("max_skipped_steps", max_skipped_steps), ("outer_steps_per_batch", per_batch)):
            if type(count) is not int or count < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, got {count!r}.")
        self.gradient_clip_val = gradient_clip_val
        self.per_batch = per_batch
        self.on_nonfinite = on_nonfinite
        self.max_skipped_steps = max_skipped_steps
        self.seed: int | None = None
        """What random numbers in training follow from, with the outer step and the rank: `torch.initial_seed()` at the
        first start of the training."""
        self.random_state: dict[str, Any] | None = None
        """The state of the global random numbers in the checkpoint that a training is to go on from."""
        self.step = 0
        """The number of the outer step, from 0; steps that were skipped count, too. Without a Trainer it stays 0."""
        self.logs_this_step = False
        """Whether values that cost extra time are worth computing in this outer step."""
        self.skipped = 0
        """How many outer steps were skipped in this training, because something was not finite."""
        self._skipped_in_a_row = 0
        self.totals: dict[str, float] = {}
        """What `MetaModule.collect` counts over this training, such as steps in environments on all devices."""
        self.monitors: dict[int, tuple[str | None, bool]] = {}
        """What schedulers monitor, by their `id`, and whether it has to be there."""
        self.tasks_together: int | None = None
        """How many tasks ran together in the last outer step of this training; 0 for one after another."""

    def __call__(self, module: "MetaModule", batch: Task) -> dict[str, Tensor]:
        """Make the outer steps of a batch of tasks.

        Returns:
            For callbacks the `loss` of the last one, and the values of each of its tasks, `(B,)` each.
        """
        check_batch(batch)
        trainer: Any = module.trainer
        if self.seed is None:
            self.seed = torch.initial_seed()
        batches = int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
        every = trainer.log_every_n_steps
        self.logs_this_step = every > 0 and (batches + 1) % every == 0
        for i in range(self.per_batch):
            self.step = batches * self.per_batch + i
            with seeded(module.device, self.seed, self.step, module.global_rank):
                if i == 0:
                    batch = collected(module, batch, training=True)
                    self._describe(module, batch)
                loss, problem = self._differentiate(module, batch)
            self._finish(module, loss, problem, batch)
        if module.outcome is None:  # a meta_loss of a user's own
            return {"loss": loss}
        return {"loss": loss, module.algorithm.objective: module.outcome.losses, **module.outcome.metrics}

    def _describe(self, module: "MetaModule", tasks: Task) -> None:
        """Say once how tasks are run."""
        task_map = module.task_map
        if self.tasks_together is None:
            rank_zero_info(f"task_parallel={task_map.task_parallel!r}: {task_map.describe(tasks)} on each device.")
        self.tasks_together = task_map.together(tasks)

    def _differentiate(self, module: "MetaModule", tasks: Task) -> tuple[Tensor, str | None]:
        """Leave the meta-gradient in `.grad`; returns the loss, and what is not finite about it, if anything."""
        optimizer: Any = module.optimizers()
        module.outcome = None
        loss = module.meta_loss(tasks)
        problem = non_finite_loss(loss, module.outcome, self.step, module.global_rank)
        optimizer.zero_grad()
        # Devices add up their gradients: so the problem of one reaches all, and they decide alike.
        with derivatives_explained():
            module.manual_backward(loss if problem is None else loss * torch.nan)
        return loss.detach(), problem

    def _finish(self, module: "MetaModule", loss: Tensor, problem: str | None, tasks: Task) -> None:
        """Move the parameters, and log."""
        outcome: Outcome | None = module.outcome  # a meta_loss of a user's own may leave none
        if self._update(module, module.optimizers(), problem) and outcome is not None:
            module.algorithm.carry(mean_over_devices(module.trainer, outcome.carried))
        self._log(module, loss, outcome, tasks)
        step_schedulers(module)

    def _update(self, module: "MetaModule", optimizer: Any, problem: str | None) -> bool:
        """Make the outer optimizer's step, unless something is not finite; whether it was made."""
        scaler = _scaler(module._trainer)
        if scaler is not None:  # it looks for what is not finite itself, and lowers its scale then
            before = scaler.get_scale()
            optimizer.step()
            skipped = scaler.get_scale() < before
            problem = problem or "A gradient is too large for float16."
        else:
            problem = problem or non_finite_gradient([p.grad for p in module.parameters()], self.step)
            skipped = problem is not None
            if not skipped:
                optimizer.step()
            elif self.on_nonfinite == "raise":
                raise NotFiniteError(
                    f"{problem} Nothing was updated, and the last checkpoint stays as it is. (on_nonfinite='skip' "
                    "leaves out such steps.)"
                )
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        self.skipped += int(skipped)
        if self._skipped_in_a_row > self.max_skipped_steps:
            raise NotFiniteError(
                f"{self._skipped_in_a_row} outer steps in a row were skipped, more than max_skipped_steps="
                f"{self.max_skipped_steps}. The last: {problem}"
            )
        return not skipped

    def _log(self, module: "MetaModule", loss: Tensor, outcome: Outcome | None, tasks: Task) -> None:
        """Log the means over the tasks of all devices; between the steps that are logged, over this device's own."""
        values = {module.algorithm.objective: loss.unsqueeze(0)}
        values |= module.measured(tasks, {} if outcome is None else outcome.metrics)
        if self.logs_this_step:
            means = mean_over_devices(module.trainer, values)
        else:
            means = {name: value.mean() for name, value in values.items()}
        if _scaler(module._trainer) is not None or self.on_nonfinite == "skip":
            means["skipped_steps"] = torch.tensor(float(self.skipped))
        module.evaluation.log(module, "train", means, tasks=number_of_tasks(tasks))


def _scaler(trainer: Any) -> GradScaler | None:
    return None if trainer is None else getattr(trainer.precision_plugin, "scaler", None)


def mean_over_devices(trainer: Any, values: Any) -> Any:
    """The mean of tensors `(B, ...)` over the tasks of all devices, which have equally many; in one message."""
    means = [tensor.mean(0) for tensor in tensors_of(values)]
    if not means or trainer.world_size == 1:
        return map_tensors(lambda tensor: tensor.mean(0), values)
    message = trainer.strategy.reduce(torch.cat([mean.flatten().double() for mean in means]), reduce_op="mean")
    pieces = iter(torch.split(message, [mean.numel() for mean in means]))
    return map_tensors(lambda tensor: next(pieces).view(tensor.shape[1:]).to(tensor.dtype), values)


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
        if not bad.any():  # a gradient that is in hand already has made it so
            return _of_gradient(step)
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
    return _of_gradient(step)


def _of_gradient(step: int) -> str:
    return (
        f"The meta-gradient is not finite at outer step {step}, though the loss on this device is. Is the inner "
        "learning rate too large? Or an operation in the network or the loss has no finite derivative here, such as "
        "the square root of 0."
    )
