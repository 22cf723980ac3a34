"""Few-shot data sets made of ImageNet."""

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_meta.datamodules.episodic import EpisodicDataModule
from lightning_meta.datamodules.field_images import FieldImages
from lightning_meta.datasets.benchmarks import Data, load_mini_imagenet, load_tiered_imagenet


class MiniImageNetDataModule(EpisodicDataModule):
    """Tasks of mini-ImageNet: 100 classes of ImageNet, 64 to train, 16 for validation and 20 to test.

    Inputs are images `(B, examples, 3, image_size, image_size)`, 600 of each class. You need a copy of your own, in one
    of its usual forms; pickles are read without running what is in them. Paper: Vinyals et al. 2016, arXiv:1606.04080.

    Args:
        root: A folder that holds, for each split, a pickle, a CSV and `images`, or a folder of classes.
        image_size: Height and width of the network's inputs.
        cache: The folder of the memory maps; `lightning_meta` in the user's folder of caches if `None`.
        backbone: A frozen network: its features, computed once and cached, take the place of the images.
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
        train_transform: Of each training example: torchvision's v2, or any function of one image; see `Transforms`.
        train_query_transform: Of the query examples in training, if those get another one.
        eval_transform: Of each example in validation and test; what is random in it is the same in every run.
        eval_query_transform: Of the query examples in validation and test, if those get another one.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a value does not make sense. In `setup`, the classes cannot give such
            tasks, or the devices do not divide the meta-batch.
        DataError: In `prepare_data` and `setup`, something cannot be read; the message names the file.
        MissingFileError: The data is not there; the message says what is needed.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 84,
        cache: str | None = None,
        backbone: nn.Module | None = None,
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
        train_transform: Callable[[Any], Any] | None = None,
        train_query_transform: Callable[[Any], Any] | None = None,
        eval_transform: Callable[[Any], Any] | None = None,
        eval_query_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(
            n_way=n_way,
            k_shot=k_shot,
            n_query=n_query,
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
            val_n_way=val_n_way,
            val_k_shot=val_k_shot,
            val_n_query=val_n_query,
            test_n_way=test_n_way,
            test_k_shot=test_k_shot,
            test_n_query=test_n_query,
            balanced=balanced,
            min_examples=min_examples,
            train_transform=train_transform,
            train_query_transform=train_query_transform,
            eval_transform=eval_transform,
            eval_query_transform=eval_query_transform,
        )
        self.images = FieldImages(root, image_size, cache, backbone, self.transforms)
        self.embedded = backbone is not None

    def prepare_data(self) -> None:
        """Unpack the images that are not unpacked yet, on one process of each machine."""
        self._load()

    def configure_datasets(self) -> None:
        """Take the images of each split."""
        self.datasets.update(self._load())

    def _load(self) -> Data:
        return self.images.of(load_mini_imagenet)


class TieredImageNetDataModule(EpisodicDataModule):
    """Tasks of tiered-ImageNet: 608 classes of ImageNet, 351 to train, 97 for validation and 160 to test.

    The classes of two splits belong to different parts of ImageNet's hierarchy. Inputs are images
    `(B, examples, 3, image_size, image_size)`. You need a copy of your own, in one of its usual forms; pickles are read
    without running what is in them. Paper: Ren et al. 2018, arXiv:1803.00676.

    Args:
        root: A folder that holds, for each split, two pickles, a CSV and `images`, or a folder of classes.
        image_size: Height and width of the network's inputs.
        cache: The folder of the memory maps; `lightning_meta` in the user's folder of caches if `None`.
        backbone: A frozen network: its features, computed once and cached, take the place of the images.
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
        train_transform: Of each training example: torchvision's v2, or any function of one image; see `Transforms`.
        train_query_transform: Of the query examples in training, if those get another one.
        eval_transform: Of each example in validation and test; what is random in it is the same in every run.
        eval_query_transform: Of the query examples in validation and test, if those get another one.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a value does not make sense. In `setup`, the classes cannot give such
            tasks, or the devices do not divide the meta-batch.
        DataError: In `prepare_data` and `setup`, something cannot be read; the message names the file.
        MissingFileError: The data is not there; the message says what is needed.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 84,
        cache: str | None = None,
        backbone: nn.Module | None = None,
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
        train_transform: Callable[[Any], Any] | None = None,
        train_query_transform: Callable[[Any], Any] | None = None,
        eval_transform: Callable[[Any], Any] | None = None,
        eval_query_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(
            n_way=n_way,
            k_shot=k_shot,
            n_query=n_query,
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
            val_n_way=val_n_way,
            val_k_shot=val_k_shot,
            val_n_query=val_n_query,
            test_n_way=test_n_way,
            test_k_shot=test_k_shot,
            test_n_query=test_n_query,
            balanced=balanced,
            min_examples=min_examples,
            train_transform=train_transform,
            train_query_transform=train_query_transform,
            eval_transform=eval_transform,
            eval_query_transform=eval_query_transform,
        )
        self.images = FieldImages(root, image_size, cache, backbone, self.transforms)
        self.embedded = backbone is not None

    def prepare_data(self) -> None:
        """Unpack the images that are not unpacked yet, on one process of each machine."""
        self._load()

    def configure_datasets(self) -> None:
        """Take the images of each split."""
        self.datasets.update(self._load())

    def _load(self) -> Data:
        return self.images.of(load_tiered_imagenet)
