"""N-way K-shot tasks from labelled data sets."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, get_args

from torch.utils.data import Dataset, default_collate
from typing_extensions import Self

from lightning_meta.datamodules.arguments import (
    Range,
    bounds,
    check_number,
    check_range,
    check_ranges,
    check_sampling,
    listed,
    row_name,
    rows,
)
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.class_tasks import ClassTasks
from lightning_meta.datamodules.labelled import SameNames, check_disjoint, scale_inputs
from lightning_meta.datamodules.splits import class_split
from lightning_meta.datamodules.transforms import Transform, check_transform
from lightning_meta.errors import ConfigurationError
from lightning_meta.task import Task, TaskDistribution


class EpisodicDataModule(TaskDataModule):
    """Feeds a meta-learning module with N-way K-shot tasks from labelled data sets.

    `TaskDataModule` says how tasks are numbered. A range such as `n_way=(5, 20)` draws each task's number uniformly.
    Tasks that vary in size are padded to the largest of their batch, with masks: see `ClassTasks`. A list such as
    `test_k_shot=[1, 5]` makes one row of results for each of its entries, named in `test_rows`.

    uint8 images become float in [0, 1] on the device. A data set's attribute `scale` (`ClassDataset`) says what becomes
    of its uint8 inputs; without it, uint8 tensors `(examples, C, H, W)` with 1 or 3 channels are images.

    For your own tasks override `configure_tasks`; for data that has to be prepared, `prepare_data` and
    `configure_datasets`; for inputs that have to be padded, `collate`.

    Args:
        train_dataset: A map-style data set with an integer `targets` sequence: see `ClassTasks`.
        val_dataset: The same with other classes.
        test_dataset: The same with other classes.
        n_way: Classes in a task, or a range [smallest, largest].
        k_shot: Support examples of each class, or a range.
        n_query: Query examples of each class.
        meta_batch_size: Tasks in an outer step, over all devices together.
        steps_per_epoch: Outer steps in an epoch.
        val_tasks: Number of validation tasks.
        test_tasks: Number of test (and prediction) tasks.
        eval_batch_size: Tasks in a batch of evaluation, on each device.
        seed: Which streams of tasks.
        num_workers: Worker processes of each loader. Data held as tensors needs none.
        val_n_way: Classes in a validation task; those in training by default, and so on below.
        val_k_shot: Support examples of each class in validation.
        val_n_query: Query examples of each class in validation.
        test_n_way: Classes in a test task, or a list: one row of results for each entry.
        test_k_shot: Support examples of each class in tests, or a list.
        test_n_query: Query examples of each class in tests.
        balanced: Whether classes of a task have equal shots; if not, they are drawn as in Meta-Dataset, up to k_shot.
        min_examples: Use classes with at least that many examples, even if that is below k_shot + n_query.
        same_names: Whether classes of one name in two splits are refused, or `different` ones, like folders 0, 1, ...
        train_transform: Of each training example: torchvision's v2, or any function of one image; see `Transforms`.
        train_query_transform: Of the query examples in training, if those get another one.
        eval_transform: Of each example in validation and test; what is random in it is the same in every run.
        eval_query_transform: Of the query examples in validation and test, if those get another one.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a number is out of its range. In `setup`, the data cannot give such tasks,
            splits share classes, or the devices do not divide the meta-batch.
    """

    _remedy = "give a {split}_dataset"
    embedded = False
    """Whether inputs are vectors of a pretrained network, of which the nearest centroid is the result to beat."""

    def __init__(
        self,
        # Not Dataset[Any]: of that the command line would refuse data sets with arguments of their own.
        train_dataset: Dataset | None = None,  # type: ignore[type-arg]
        val_dataset: Dataset | None = None,  # type: ignore[type-arg]
        test_dataset: Dataset | None = None,  # type: ignore[type-arg]
        n_way: int | tuple[int, int] = 5,
        k_shot: int | tuple[int, int] = 1,
        n_query: int = 15,
        meta_batch_size: int = 32,
        steps_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        eval_batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
        val_n_way: int | tuple[int, int] | None = None,
        val_k_shot: int | tuple[int, int] | None = None,
        val_n_query: int | None = None,
        # A list before a range: on the command line [1, 5] is a list here.
        test_n_way: int | list[int | tuple[int, int]] | tuple[int, int] | None = None,
        test_k_shot: int | list[int | tuple[int, int]] | tuple[int, int] | None = None,
        test_n_query: int | None = None,
        balanced: bool = True,
        min_examples: int | None = None,
        same_names: SameNames = "refuse",
        train_transform: Callable[[Any], Any] | None = None,
        train_query_transform: Callable[[Any], Any] | None = None,
        eval_transform: Callable[[Any], Any] | None = None,
        eval_query_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.datasets = {"train": train_dataset, "val": val_dataset, "test": test_dataset}
        self.n_way, self.k_shot, self.n_query = n_way, k_shot, n_query
        self.val_n_way = n_way if val_n_way is None else val_n_way
        self.val_k_shot = k_shot if val_k_shot is None else val_k_shot
        self.val_n_query = n_query if val_n_query is None else val_n_query
        self.test_n_way = n_way if test_n_way is None else test_n_way
        self.test_k_shot = k_shot if test_k_shot is None else test_k_shot
        self.test_n_query = n_query if test_n_query is None else test_n_query
        self.balanced = balanced
        self.min_examples = min_examples
        self.same_names: SameNames = same_names
        self.transforms: dict[str, tuple[Transform | None, Transform | None]] = {
            "train": (train_transform, train_transform if train_query_transform is None else train_query_transform),
            "val": (eval_transform, eval_transform if eval_query_transform is None else eval_query_transform),
            "test": (eval_transform, eval_transform if eval_query_transform is None else eval_query_transform),
        }
        """The transforms of the support and of the query examples of each split."""
        if same_names not in get_args(SameNames):
            raise ConfigurationError(f"same_names must be 'refuse' or 'different', got {same_names!r}.")
        for prefix, check in (("", check_range), ("val_", check_range), ("test_", check_ranges)):
            for name in (f"{prefix}n_way", f"{prefix}k_shot"):
                check(name, getattr(self, name))
            check_number(f"{prefix}n_query", getattr(self, f"{prefix}n_query"))
        check_sampling(balanced, min_examples)
        for name, transform in (
            ("train_transform", train_transform),
            ("train_query_transform", train_query_transform),
            ("eval_transform", eval_transform),
            ("eval_query_transform", eval_query_transform),
        ):
            check_transform(name, transform)
        if isinstance(self.test_n_way, list) or isinstance(self.test_k_shot, list):
            self.test_rows = [row_name(*row) for row in rows(self.test_n_way, self.test_k_shot)]

    @classmethod
    def from_dataset(
        cls, dataset: Dataset[Any], fractions: Sequence[float] = (0.6, 0.2, 0.2), split_seed: int = 0, **options: Any
    ) -> Self:
        """Tasks of one labelled data set, whose classes are divided into train, val and test by `class_split`.

        Args:
            dataset: A map-style data set with an integer `targets` sequence.
            fractions: The part of the classes that each split gets; with 0 there is no such split.
            split_seed: Another seed, other classes in each split.
            options: Those of the constructor, such as `n_way`.

        Raises:
            ConfigurationError: There are not three parts, or the classes cannot be divided so.

        Example:
            >>> from lightning_meta.datasets import glyphs
            >>> data = EpisodicDataModule.from_dataset(glyphs(range(20)), [0.5, 0.25, 0.25], n_way=5, k_shot=1)
            >>> data.setup()
            >>> {split: len(part) for split, part in data.datasets.items()}
            {'train': 200, 'val': 100, 'test': 100}
        """
        if len(fractions) != 3:
            raise ConfigurationError(f"fractions must be the parts of train, val and test, got {fractions!r}.")
        parts = [part if len(part) else None for part in class_split(dataset, fractions, split_seed)]
        return cls(train_dataset=parts[0], val_dataset=parts[1], test_dataset=parts[2], **options)

    @property
    def largest_way(self) -> int:
        """The most classes that a task of any split has: the outputs that one network for all of them needs."""
        return max(self.ways_of(split)[1] for split in ("train", "val", "test"))

    def ways_of(self, split: str) -> tuple[int, int]:
        """The smallest and the largest number of classes of a split's tasks, over all rows of a test."""
        ways = [bounds(way) for way in listed(self._asked_for(split)[0])]
        return min(least for least, _ in ways), max(most for _, most in ways)

    def _asked_for(self, split: str) -> tuple[Range | list[Range], Range | list[Range], int]:
        """Way, shot and queries of a split."""
        if split == "train":
            return self.n_way, self.k_shot, self.n_query
        if split == "val":
            return self.val_n_way, self.val_k_shot, self.val_n_query
        return self.test_n_way, self.test_k_shot, self.test_n_query

    def configure_datasets(self) -> None:
        """Fill `self.datasets` for `"train"`, `"val"` and `"test"`. Called by `setup`, on every device."""

    def configure_tasks(self, split: str) -> TaskDistribution | None:
        """Where the tasks of a split come from; `None` if there are none. Override for tasks of your own."""
        dataset = self.datasets[split]
        if dataset is None:
            return None
        n_way, k_shot, n_query = self._asked_for(split)
        return ClassTasks(
            dataset,
            split,
            listed(n_way)[0],
            listed(k_shot)[0],
            n_query,
            self.seed,
            self.balanced,
            self.min_examples,
            self._picklable_collate(),
            *self.transforms[split],
        )

    def configure_rows(self, tasks: TaskDistribution) -> Sequence[TaskDistribution]:
        """Tasks of every combination of `test_n_way` and `test_k_shot`, from the same data.

        Raises:
            ConfigurationError: The tasks are not of labelled data, or the data cannot give them.
        """
        if not isinstance(tasks, ClassTasks):
            raise ConfigurationError(
                f"test_n_way={self.test_n_way} and test_k_shot={self.test_k_shot} ask for several rows of tests, but "
                f"configure_tasks returned {type(tasks).__name__}. Return ClassTasks, or override configure_rows, too."
            )
        return [tasks.of_shape(n_way, k_shot) for n_way, k_shot in rows(self.test_n_way, self.test_k_shot)]

    def collate(self, inputs: list[Any]) -> Any:
        """Stack the inputs of examples that were read one by one; override to pad them, texts for instance.

        It is called once for each batch of tasks on a device, with the examples of all its support sets and then of all
        its query sets, so that all of them can be padded to the longest. A network must not mind how long that is: the
        same task is met in batches of other lengths. Where a data set holds tensors, it is not called.

        Args:
            inputs: What the data set returned as the inputs of each example.

        Returns:
            A tensor, or any nesting of tensors, with a leading dimension of `len(inputs)`.
        """
        return default_collate(inputs)

    def _picklable_collate(self) -> Callable[[list[Any]], Any]:
        return default_collate if type(self).collate is EpisodicDataModule.collate else _Collate(self)

    def setup(self, stage: str | None = None) -> None:
        """Load the data and check that it can give the tasks asked for."""
        if not self.tasks:
            self.configure_datasets()
            there = {split: data for split, data in self.datasets.items() if data is not None}
            check_disjoint(there, same_names=self.same_names)
        super().setup(stage)

    def finish(self, tasks: Task, split: str) -> Task:
        """Scale uint8 images to [0, 1]."""
        source = self.tasks.get(split)
        return scale_inputs(tasks, source.dataset if isinstance(source, ClassTasks) else self.datasets[split])


class _Collate:
    """A data module's `collate`, which goes to other processes without the Trainer and the data."""

    def __init__(self, module: EpisodicDataModule) -> None:
        self.module = module

    def __call__(self, inputs: list[Any]) -> Any:
        return self.module.collate(inputs)

    def __getstate__(self) -> dict[str, Any]:
        alone = copy.copy(self.module)
        alone.trainer = None
        alone.datasets, alone.tasks, alone.rows, alone._moved = {}, {}, {}, {}
        return {"module": alone}
