"""The base of the data modules: streams of tasks for meta-training and fixed tasks for evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import RunningStage

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.datamodules.loader import TaskLoader
from lightning_meta.errors import ConfigurationError
from lightning_meta.hyperparameters import plain_hyperparameters
from lightning_meta.task import Task, TaskDistribution

_SPLITS = {
    RunningStage.SANITY_CHECKING: "val",
    RunningStage.VALIDATING: "val",
    RunningStage.TESTING: "test",
    RunningStage.PREDICTING: "test",
}


@runtime_checkable
class _Movable(Protocol):
    """A task distribution whose data can lie on a device."""

    def to(self, device: torch.device) -> TaskDistribution: ...


class TaskDataModule(pl.LightningDataModule, ABC):
    """Feeds a meta-learning module with tasks of any kind: override `configure_tasks`.

    A task is a pure function of (seed, split, task number). Meta-training is an endless stream of tasks, of which outer
    step `i` takes numbers `i * meta_batch_size` onwards; an epoch is `steps_per_epoch` steps. Evaluation takes the same
    tasks every time, each once. Batches are `Task`s with a leading task dimension `B`.

    A task distribution with a method `to(device)`, which returns the same tasks made of data on that device, is moved
    to the GPU that trains on it, unless there are workers.

    Args:
        meta_batch_size: Tasks in an outer step, over all devices together.
        steps_per_epoch: Outer steps in an epoch.
        val_tasks: Number of validation tasks.
        test_tasks: Number of test (and prediction) tasks.
        eval_batch_size: Tasks in a batch of evaluation, on each device.
        seed: Which streams of tasks.
        num_workers: Worker processes of each loader. Data held as tensors needs none.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a number is out of its range. In `setup`, the devices do not divide the
            meta-batch.

    Example:
        >>> from lightning_meta.datasets import SinusoidTasks
        >>> class Waves(TaskDataModule):
        ...     def configure_tasks(self, split):
        ...         return SinusoidTasks(split, k_shot=5, n_query=10, seed=self.seed)
        >>> data = Waves(meta_batch_size=4)
        >>> data.setup()
        >>> next(iter(data.train_dataloader())).support.inputs.shape
        torch.Size([4, 5, 1])
    """

    _remedy = 'configure_tasks("{split}") returned None'

    def __init__(
        self,
        meta_batch_size: int = 32,
        steps_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        eval_batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.meta_batch_size = meta_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.val_tasks, self.test_tasks = val_tasks, test_tasks
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        for name in ("meta_batch_size", "steps_per_epoch", "val_tasks", "test_tasks", "eval_batch_size"):
            check_number(name, getattr(self, name))
        check_number("seed", seed, 0, 2**64)
        check_number("num_workers", num_workers, 0, 1024)
        self.tasks: dict[str, TaskDistribution] = {}
        """The tasks of each split, once `setup` has run; of the first row where tests have several."""
        self.test_rows: list[str] = []
        """Names of the rows of a test's result, one loader each; empty where a test has one loader and no names."""
        self.rows: dict[str, TaskDistribution] = {}
        """The tasks of each row of `test_rows`, once `setup` has run."""
        self._moved: dict[str, TaskDistribution] = {}

    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(plain_hyperparameters(hp))

    @abstractmethod
    def configure_tasks(self, split: str) -> TaskDistribution | None:
        """Where the tasks of `"train"`, `"val"` or `"test"` come from; `None` if there are none. Called by `setup`."""

    def configure_rows(self, tasks: TaskDistribution) -> Sequence[TaskDistribution]:
        """The tasks of each row of `test_rows`, given those that `configure_tasks` returned for `"test"`."""
        return [tasks]

    def finish(self, tasks: Task, split: str) -> Task:
        """What is still to be done to a batch of a split after its transfer to the device, such as scaling images."""
        return tasks

    def setup(self, stage: str | None = None) -> None:
        """Make the task distributions, and check that the devices fit the numbers of tasks."""
        if not self.tasks:
            for split in ("train", "val", "test"):
                tasks = self.configure_tasks(split)
                if tasks is not None:
                    self.tasks[split] = tasks
            if self.test_rows and "test" in self.tasks:
                self.rows = dict(zip(self.test_rows, self.configure_rows(self.tasks["test"]), strict=True))
        world = self._rank_and_world()[1]
        if stage in ("fit", None) and self.meta_batch_size % world:
            raise ConfigurationError(
                f"meta_batch_size={self.meta_batch_size} is the number of tasks in an outer step over all devices "
                f"together, and {world} devices do not divide it. Make it a multiple of {world}."
            )
        for name, stages in (("val_tasks", ("fit", "validate", None)), ("test_tasks", ("test", "predict", None))):
            if stage in stages and getattr(self, name) < world:
                raise ConfigurationError(f"{name}={getattr(self, name)} is fewer than the {world} devices. Raise it.")

    def train_dataloader(self) -> TaskLoader:
        """The endless stream from the current outer step on, cut into epochs; from task 0 without a Trainer."""
        rank, world = self._rank_and_world()
        numbers = partial(_training_numbers, meta_batch_size=self.meta_batch_size, rank=rank, world=world)

        def first() -> int:
            trainer = self._running_trainer()
            if trainer is None:
                return 0
            # Counts outer steps over all epochs, and is restored from a checkpoint before the loader is iterated.
            return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]

        if "train" not in self.tasks:
            raise ConfigurationError(f"There are no tasks to train on: {self._remedy.format(split='train')}.")
        finish = self._finish_here("train")
        return TaskLoader(self._on_device("train"), numbers, self.steps_per_epoch, first, self.num_workers, finish)

    def val_dataloader(self) -> TaskLoader | list[TaskLoader]:
        """The fixed validation tasks; an empty list where there are none, since training without them is fine."""
        return self._evaluation_loader("val", self._on_device("val"), self.val_tasks) if "val" in self.tasks else []

    def test_dataloader(self) -> TaskLoader | list[TaskLoader]:
        """The fixed test tasks, in one loader for each of `test_rows` where there are some."""
        if "test" not in self.tasks:
            raise ConfigurationError(f"There are no test tasks: {self._remedy.format(split='test')}.")
        tasks = self._on_device("test")
        if not self.test_rows:
            return self._evaluation_loader("test", tasks, self.test_tasks)
        return [self._evaluation_loader("test", row, self.test_tasks) for row in self.configure_rows(tasks)]

    def predict_dataloader(self) -> TaskLoader | list[TaskLoader]:
        """The fixed test tasks, to predict their query sets."""
        return self.test_dataloader()

    def _evaluation_loader(self, split: str, tasks: TaskDistribution, count: int) -> TaskLoader:
        rank, world = self._rank_and_world()
        mine = range(count * rank // world, count * (rank + 1) // world)
        numbers = partial(_evaluation_numbers, mine=mine, size=self.eval_batch_size)
        length = -(-len(mine) // self.eval_batch_size)
        return TaskLoader(tasks, numbers, length, num_workers=self.num_workers, finish=self._finish_here(split))

    def _finish_here(self, split: str) -> "partial[Task] | None":
        """What a loader does to batches that no Trainer transfers."""
        return partial(self.finish, split=split) if self._running_trainer() is None else None

    def _on_device(self, split: str) -> TaskDistribution:
        """The tasks of a split; on a GPU with their data there, if they can."""
        tasks, trainer = self.tasks[split], self._running_trainer()
        if not isinstance(tasks, _Movable) or trainer is None or self.num_workers:
            return tasks
        device = trainer.strategy.root_device
        if device.type != "cuda":
            return tasks
        if split not in self._moved:
            self._moved[split] = tasks.to(device)
        return self._moved[split]

    def on_after_batch_transfer(self, batch: Task, dataloader_idx: int) -> Task:
        """Finish a batch on the device, in the Trainer's precision."""
        trainer = self._running_trainer()
        if trainer is None:
            return batch
        stage = trainer.state.stage
        batch = self.finish(batch, "train" if stage is None else _SPLITS.get(stage, "train"))
        return cast(Task, trainer.precision_plugin.convert_input(batch))

    def _running_trainer(self) -> pl.Trainer | None:
        """The Trainer, while it runs; before and after that, loaders work as without one."""
        return self.trainer if self.trainer is not None and self.trainer.state.status == "running" else None

    def _rank_and_world(self) -> tuple[int, int]:
        trainer = self._running_trainer()
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def _training_numbers(step: int, meta_batch_size: int, rank: int, world: int) -> range:
    """The tasks of this rank in an outer step."""
    share = meta_batch_size // world
    start = step * meta_batch_size + rank * share
    return range(start, start + share)


def _evaluation_numbers(batch: int, mine: range, size: int) -> range:
    """The tasks of a batch, out of those of this rank."""
    return mine[batch * size : (batch + 1) * size]
