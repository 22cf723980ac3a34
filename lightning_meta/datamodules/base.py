"""The base of the data modules: streams of tasks for meta-training and fixed tasks for evaluation."""

from functools import partial

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_meta.datamodules.class_tasks import ClassTasks, check_disjoint
from lightning_meta.datamodules.loader import TaskLoader
from lightning_meta.hyperparameters import PlainHyperparameters
from lightning_meta.task import Task, TaskDistribution, map_tensors


class EpisodicDataModule(PlainHyperparameters, pl.LightningDataModule):
    """Feeds a meta-learning module with N-way K-shot tasks from labelled data sets.

    A task is a pure function of (seed, split, task number). Meta-training is an endless stream of tasks, of which outer
    step `i` takes numbers `i * meta_batch_size` onwards; an epoch is `steps_per_epoch` steps. Evaluation takes the same
    tasks every time, each once. Batches are `Task`s with a leading task dimension `B`; on a device, uint8 images
    become float in [0, 1].

    For your own tasks (regression, robots, customers) override `configure_tasks`; for data that has to be prepared,
    `prepare_data` and `configure_datasets`.

    Args:
        train_dataset: A map-style data set with an integer `targets` sequence: see `ClassTasks`.
        val_dataset: The same with other classes.
        test_dataset: The same with other classes.
        n_way: Classes in a task; `val_n_way` and `test_n_way` default to it, and so on for the next two.
        k_shot: Support examples of each class.
        n_query: Query examples of each class.
        meta_batch_size: Tasks in an outer step, over all devices together.
        steps_per_epoch: Outer steps in an epoch.
        val_tasks: Number of validation tasks.
        test_tasks: Number of test (and prediction) tasks.
        eval_batch_size: Tasks in a batch of evaluation, on each device.
        seed: Which streams of tasks.
        num_workers: Worker processes of each loader. Data held as one tensor needs none.
        val_n_way: Classes in a validation task.
        val_k_shot: Support examples of each class in validation.
        val_n_query: Query examples of each class in validation.
        test_n_way: Classes in a test task.
        test_k_shot: Support examples of each class in tests.
        test_n_query: Query examples of each class in tests.

    Raises:
        ValueError: At construction, a number is out of its range. In `setup`, the data cannot give such tasks, splits
            share classes, or the devices do not divide the meta-batch.
    """

    def __init__(
        self,
        # Not Dataset[Any]: of that the command line would refuse data sets with arguments of their own.
        train_dataset: Dataset | None = None,  # type: ignore[type-arg]
        val_dataset: Dataset | None = None,  # type: ignore[type-arg]
        test_dataset: Dataset | None = None,  # type: ignore[type-arg]
        n_way: int = 5,
        k_shot: int = 1,
        n_query: int = 15,
        meta_batch_size: int = 32,
        steps_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        eval_batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
        val_n_way: int | None = None,
        val_k_shot: int | None = None,
        val_n_query: int | None = None,
        test_n_way: int | None = None,
        test_k_shot: int | None = None,
        test_n_query: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.datasets = {"train": train_dataset, "val": val_dataset, "test": test_dataset}
        self.n_way, self.k_shot, self.n_query = n_way, k_shot, n_query
        self.val_n_way = n_way if val_n_way is None else val_n_way
        self.val_k_shot = k_shot if val_k_shot is None else val_k_shot
        self.val_n_query = n_query if val_n_query is None else val_n_query
        self.test_n_way = n_way if test_n_way is None else test_n_way
        self.test_k_shot = k_shot if test_k_shot is None else test_k_shot
        self.test_n_query = n_query if test_n_query is None else test_n_query
        self.meta_batch_size = meta_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.val_tasks, self.test_tasks = val_tasks, test_tasks
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        shapes = [f"{split}{name}" for split in ("", "val_", "test_") for name in ("n_way", "k_shot", "n_query")]
        counts = ["meta_batch_size", "steps_per_epoch", "val_tasks", "test_tasks", "eval_batch_size"]
        for name in [*shapes, *counts, "seed", "num_workers"]:
            if type(getattr(self, name)) is not int:
                raise TypeError(f"{name} must be a whole number, got {getattr(self, name)!r}.")
        for name in shapes + counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name, bound in (("seed", 2**64), ("num_workers", 1024)):
            if not 0 <= getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least 0 and below {bound}, got {getattr(self, name)}.")
        self.tasks: dict[str, TaskDistribution] = {}
        """The tasks of each split, once `setup` has run."""
        self._moved: dict[str, ClassTasks] = {}

    def configure_datasets(self) -> None:
        """Fill `self.datasets` for `"train"`, `"val"` and `"test"`. Called by `setup`, on every device."""

    def configure_tasks(self, split: str) -> TaskDistribution | None:
        """Where the tasks of a split come from; `None` if there are none. Override for tasks of your own."""
        dataset = self.datasets[split]
        if dataset is None:
            return None
        prefix = "" if split == "train" else f"{split}_"
        n_way, k_shot, n_query = (getattr(self, f"{prefix}{name}") for name in ("n_way", "k_shot", "n_query"))
        return ClassTasks(dataset, split, n_way, k_shot, n_query, self.seed)

    def setup(self, stage: str | None = None) -> None:
        """Load the data and check that it can give the tasks asked for."""
        if not self.tasks:
            self.configure_datasets()
            check_disjoint({split: data for split, data in self.datasets.items() if data is not None})
            for split in self.datasets:
                tasks = self.configure_tasks(split)
                if tasks is not None:
                    self.tasks[split] = tasks
        world = self._rank_and_world()[1]
        if stage in ("fit", None) and self.meta_batch_size % world:
            raise ValueError(
                f"meta_batch_size={self.meta_batch_size} is the number of tasks in an outer step over all devices "
                f"together, and {world} devices do not divide it. Make it a multiple of {world}."
            )
        for name, stages in (("val_tasks", ("fit", "validate", None)), ("test_tasks", ("test", "predict", None))):
            if stage in stages and getattr(self, name) < world:
                raise ValueError(f"{name}={getattr(self, name)} is fewer than the {world} devices. Raise it.")

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
            raise ValueError("There are no tasks to train on: give a train_dataset.")
        finish = scale_images if self._running_trainer() is None else None
        return TaskLoader(self._on_device("train"), numbers, self.steps_per_epoch, first, self.num_workers, finish)

    def val_dataloader(self) -> TaskLoader | list[TaskLoader]:
        """The fixed validation tasks."""
        return self._evaluation_loader("val", self.val_tasks)

    def test_dataloader(self) -> TaskLoader | list[TaskLoader]:
        """The fixed test tasks."""
        return self._evaluation_loader("test", self.test_tasks)

    def predict_dataloader(self) -> TaskLoader | list[TaskLoader]:
        """The fixed test tasks, to predict their query sets."""
        return self.test_dataloader()

    def _evaluation_loader(self, split: str, count: int) -> TaskLoader | list[TaskLoader]:
        if split not in self.tasks:
            if split == "val":  # to train without validation is fine
                return []
            raise ValueError(f"There are no {split} tasks: give a {split}_dataset.")
        rank, world = self._rank_and_world()
        mine = range(count * rank // world, count * (rank + 1) // world)
        size = self.eval_batch_size
        numbers = partial(_evaluation_numbers, mine=mine, size=size)
        finish = scale_images if self._running_trainer() is None else None
        length = -(-len(mine) // size)
        return TaskLoader(self._on_device(split), numbers, length, num_workers=self.num_workers, finish=finish)

    def _on_device(self, split: str) -> TaskDistribution:
        """The tasks of a split; those of labelled data on a GPU with the data there, if it fits."""
        tasks, trainer = self.tasks[split], self._running_trainer()
        if not isinstance(tasks, ClassTasks) or trainer is None or self.num_workers:
            return tasks
        device = trainer.strategy.root_device
        if device.type != "cuda":
            return tasks
        if split not in self._moved:
            self._moved[split] = tasks.to(device)
        return self._moved[split]

    def on_after_batch_transfer(self, batch: Task, dataloader_idx: int) -> Task:
        """Scale uint8 images to [0, 1], on the device, in the Trainer's precision."""
        batch = scale_images(batch)
        trainer = self._running_trainer()
        return batch if trainer is None else trainer.precision_plugin.convert_input(batch)

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


def scale_images(tasks: Task) -> Task:
    """Turn uint8 tensors into float32 in [0, 1]; leave all others as they are."""

    def scale(tensor: Tensor) -> Tensor:
        return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor

    support = tasks.support._replace(inputs=map_tensors(scale, tasks.support.inputs))
    return Task(support, tasks.query._replace(inputs=map_tensors(scale, tasks.query.inputs)))
