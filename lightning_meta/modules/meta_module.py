"""The base of the modules: a network, an algorithm, and the hooks that users override."""

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from typing_extensions import Self

from lightning_meta.algorithms.acting import Actor
from lightning_meta.algorithms.base import Algorithm, Outcome
from lightning_meta.functional import Learner, Params, Problem, TaskMap, TaskParallel
from lightning_meta.functional.compilation import CompiledFunction
from lightning_meta.functional.hooks import complete_hooks
from lightning_meta.functional.losses import Loss, accuracies_of_tasks, is_cross_entropy, losses_of_tasks
from lightning_meta.functional.network import check_network
from lightning_meta.hyperparameters import plain_hyperparameters
from lightning_meta.inner import InnerOptimizer
from lightning_meta.modules import checkpoints, deployment, optimizers
from lightning_meta.modules.compiled import compiled_gradient
from lightning_meta.modules.evaluation import Evaluation, Metrics
from lightning_meta.modules.lifecycle import Lifecycle
from lightning_meta.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from lightning_meta.modules.outer_step import OnNonfinite, OuterStep
from lightning_meta.modules.trainer_checks import check_callables, check_outputs
from lightning_meta.task import Examples, Task, class_counts


class MetaModule(pl.LightningModule):
    """Trains a network by a meta-learning algorithm with Lightning's `Trainer`, under manual optimization.

    Batches are `Task`s with a leading task dimension `B`. Log keys are `{train,val,test}/query_accuracy`,
    `.../query_loss`, `.../support_loss`, with `_before` for values before adaptation; in validation and test they are
    means over all tasks, and `_ci95` is the half-width of their 95 % interval.

    Args:
        network: Called as `network(inputs)`; found again as `module.network`.
        algorithm: What is made of a batch of tasks; the other modules make theirs from their arguments.
        loss: Maps predictions and targets of one task to a scalar; cross-entropy if `None`.
        inner_loss: The loss of the inner loop, if that is another one.
        metrics: Of torchmetrics, measured in validation and test over all query examples: see `evaluation.results`.
        optimizer: Makes the outer optimizer from the trainable parameters. Its weight decay is for the network's.
        lr_scheduler: Makes its scheduler, stepped once an outer step (`ReduceLROnPlateau`: after each validation).
        inner_optimizer_lr: The outer learning rate of what the algorithm learns besides the network, such as rates.
        gradient_clip_val: Largest norm of the meta-gradient.
        task_parallel: How the tasks of a batch are run, `auto`, `vmap`, `loop` or a chunk size: see `TaskMap`.
        outer_steps_per_batch: How many outer steps are made on each batch of tasks.
        on_nonfinite: Whether what is not finite, on any device, is an error (`raise`), or `skip` leaves the step out.
        max_skipped_steps: How many outer steps in a row may be skipped before it is an error.
        compile: Whether outer steps are compiled by `torch.compile`, which needs a C++ compiler and takes a while.
        save_frozen: Whether checkpoints hold frozen parameters, or leave out what is loaded again from elsewhere.

    What does not make sense is a `ConfigurationError`, and a value of another kind an `ArgumentTypeError`.
    """

    def __init__(
        self,
        network: nn.Module,
        algorithm: Algorithm,
        *,
        loss: Loss | None = None,
        inner_loss: Loss | None = None,
        metrics: Metrics | None = None,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        inner_optimizer_lr: float | None = None,
        gradient_clip_val: float | None = None,
        task_parallel: TaskParallel = "auto",
        outer_steps_per_batch: int = 1,
        on_nonfinite: OnNonfinite = "raise",
        max_skipped_steps: int = 20,
        compile: bool = False,
        save_frozen: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        check_callables(loss=loss, inner_loss=inner_loss, optimizer=optimizer, lr_scheduler=lr_scheduler)
        self.network, self.algorithm = check_network(network), algorithm
        algorithm.build(network)
        optimizers.check_inner_rate(inner_optimizer_lr, algorithm)
        self.loss: Loss = F.cross_entropy if loss is None else loss
        self.inner_loss = inner_loss
        self.optimizer = optimizers.DefaultOptimizer.instead_of(optimizer, type(self))
        self.lr_scheduler, self.inner_optimizer_lr = lr_scheduler, inner_optimizer_lr
        self.outer = OuterStep(gradient_clip_val, outer_steps_per_batch, on_nonfinite, max_skipped_steps)
        self.evaluation, self.compiles, self.save_frozen = Evaluation(metrics), compile, save_frozen
        self.outcome: Outcome | None = None
        """What the last `meta_loss` made of its tasks, detached."""
        self._program = CompiledFunction()
        self._task_map = TaskMap(network, algorithm.select(network), task_parallel)
        self._checked: set[Any] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_hooks(cls)

    # Hooks that users override.

    def meta_loss(self, tasks: Task) -> Tensor:
        """The scalar whose value is the mean loss of the adapted parameters and whose gradient is the meta-gradient.

        It needs no Trainer, requires grad through every trainable parameter and never writes to `.grad`; `.backward()`
        does, and leaves there the meta-gradient, averaged over the `B` tasks of the batch.
        """
        trainable = [p for p in self.parameters() if p.requires_grad]
        problem, learn = self.problem(tasks), self.algorithm.learn
        compiled = compiled_gradient(self, problem) if self.compiles else None
        loss, self.outcome = self._task_map.meta_loss(learn, problem, trainable, problem.scale**2, compiled)
        return loss

    def task_losses(self, predictions: Any, targets: Any, mask: Tensor | None = None) -> Tensor:
        """The loss of each task, `(B,)`, of predictions and targets `(B, examples, ...)` and a mask `(B, examples)`.

        An override without `mask` is called, where tasks have different sizes, for one task after another with its real
        examples alone; so for `task_metrics`. Outputs that do not fit the targets are a `ConfigurationError`.
        """
        stage = None if self._trainer is None else self._trainer.state.stage
        case = (stage, getattr(predictions, "shape", None), getattr(targets, "shape", None))
        if case not in self._checked:
            running = self._trainer if stage is not None and self.task_map.names else None
            check_outputs(self.loss, predictions, targets, mask, running)
            self._checked.add(case)
        return losses_of_tasks(self.loss, predictions, targets, mask)

    task_metrics = staticmethod(accuracies_of_tasks)
    """Metrics of each task besides the loss, `(B,)` each: the accuracy, where targets are class numbers."""

    def support_data(self, tasks: Task, params: Params, step: int) -> Examples:
        """The examples for inner step `step`; a function of its arguments, since steps may be computed again."""
        return tasks.support

    def query_data(self, tasks: Task, params: Params) -> Examples:
        """The examples on which adapted parameters are judged; a function of its arguments, too."""
        return tasks.query

    def collect(self, tasks: Task, act: Actor) -> Task:
        """Collect data that depends on adapted parameters, such as rollouts of a policy, once for each batch of tasks.

        `act(inputs)` predicts `(B, examples, ...)` for all tasks at once, each with its own parameters, and
        `act.adapt(examples)` makes one inner step; `act.steps` is how many there are to be. What is returned is an
        ordinary batch: one or more outer steps are made on it, with `support_data` of each inner step.
        """
        return tasks

    def measured(self, tasks: Task, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What to log of a batch that `collect` returned: by default `values`, `(B,)` each by name."""
        return values

    def problem(self, tasks: Task) -> Problem:
        """The tasks as losses and predictions of given parameters, as an algorithm takes them."""
        learner = Learner(self.network, self.task_map.names, vectorized=False)
        tables = {key.replace("/", "."): table for key, table in self.algorithm.step_params.items()}
        inner = self.task_losses if self.inner_loss is None else partial(losses_of_tasks, self.inner_loss)
        rest = self.outer.step, self.loss_scale**0.5, self.outer.logs_this_step
        return Problem(tasks, learner, self, inner, tables, *class_counts(tasks), *rest)

    @property
    def task_map(self) -> TaskMap:
        """Runs functions over the tasks of a batch, with the network that is `network` now."""
        if self._task_map.network is not self.network:
            self._task_map = TaskMap(self.network, self.algorithm.select(self.network), self._task_map.task_parallel)
        return self._task_map

    @property
    def inner_optimizer(self) -> InnerOptimizer:
        """What makes the inner steps."""
        return self.algorithm.inner_optimizer  # type: ignore[return-value]

    @property
    def loss_scale(self) -> float:
        """What the Trainer scales losses by before it differentiates them: above 1 under `16-mixed`."""
        scaler = None if self._trainer is None else getattr(self._trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    @property
    def monitor(self) -> str:
        """The log key by which the best checkpoint is chosen."""
        return "val/query_accuracy" if is_cross_entropy(self.loss) else "val/query_loss"

    @property
    def mode(self) -> str:
        """Whether that is the `"max"` or the `"min"` of it."""
        return "max" if self.monitor == "val/query_accuracy" else "min"

    forward = to_onnx = deployment.forward

    def training_step(self, batch: Task, batch_idx: int) -> Any:
        """One or more outer steps; callbacks get the loss of the last one, and the values of each of its tasks."""
        return self.outer(self, batch)

    def validation_step(self, batch: Task, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Adapt to a batch of validation tasks and measure; callbacks get the values of each task."""
        return self.evaluation(self, "val", batch, dataloader_idx)

    def test_step(self, batch: Task, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Adapt to a batch of test tasks and measure; callbacks get the values of each task."""
        return self.evaluation(self, "test", batch, dataloader_idx)

    def predict_step(self, batch: Task, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Predictions for the query sets: `(B, queries, ...)`; one for each task where those have different sizes."""
        return self.evaluation.predictions(self, batch)

    def configure_optimizers(self) -> Any:
        """The outer optimizer over all trainable parameters, and its scheduler."""
        return optimizers.configured(self)

    def configure_callbacks(self) -> list[pl.Callback]:
        """What a run needs of hooks, so that those of the module are free for users."""
        return Lifecycle.attach(self.trainer, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed training needs, and a description of the objects that it is made of."""
        checkpoints.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore that, and name the hyperparameters in which the checkpoint differs; those given now are used."""
        checkpoints.load(self, checkpoint)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Rebuild a module: see Lightning. Arguments of the module, such as `network`, win over those that were saved.

        What is not only tensors and plain values, truncated, or does not fit the module is a `CheckpointError`.
        """
        with checkpoints.readable(checkpoint_path):
            return super().load_from_checkpoint(checkpoint_path, *args, **{"weights_only": True} | kwargs)

    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(plain_hyperparameters(hp))

    def adapt_to(self, inputs: Any, targets: Any, steps: int | None = None, *, transductive: bool = False) -> nn.Module:
        """Adapt to one labelled support set; returns a copy of the network to predict with, which requires no grad.

        Args:
            inputs: Support inputs `(examples, ...)`, as the network takes them.
            targets: Their targets, `(examples, ...)`.
            steps: Inner steps; as many as in evaluation if `None`.
            transductive: Normalize by whatever batch is predicted; by default statistics are the support set's.

        Raises:
            ConfigurationError: Inputs and targets differ in length, there are none, or `steps` is negative.
        """
        return deployment.adapted_network(self, inputs, targets, steps, transductive)

    def adaptation_curve(self, tasks: Task, steps: int | None = None) -> dict[str, Tensor]:
        """`query_loss` and each metric after every inner step, `(B, steps + 1)`; `steps=None`: those of evaluation."""
        return deployment.adaptation_curve(self, tasks, steps)
