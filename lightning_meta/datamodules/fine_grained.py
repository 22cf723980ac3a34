"""Data sets of similar classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from torch import nn

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.datamodules.episodic import EpisodicDataModule
from lightning_meta.datamodules.field_images import FieldImages
from lightning_meta.datasets.benchmarks import Data, FineGrained, load_fine_grained
from lightning_meta.errors import ConfigurationError


class FineGrainedDataModule(EpisodicDataModule):
    """Tasks of CUB-200 (birds), Flowers 102, FGVC-Aircraft, DTD (textures) or Quickdraw (1,000 drawings of a class).

    The classes are divided at random, by default in the proportions of Meta-Dataset (Triantafillou et al. 2020,
    arXiv:1903.03096), as the published divisions differ; for one of those use folders train, val and test. Inputs are
    images `(B, examples, C, image_size, image_size)`, with one channel for Quickdraw, white on black, else three.

    Args:
        name: Which of them.
        root: A folder that holds it as torchvision leaves it, or `quickdraw/<class>.npy`, or {train,val,test}/<class>/.
        image_size: Height and width of the network's inputs.
        split: Parts of the classes for train, val and test, where splits have no folders of their own.
        split_seed: Another seed, other classes in each split.
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
        name: FineGrained,
        root: str,
        image_size: int = 84,
        split: tuple[float, float, float] = (0.7, 0.15, 0.15),
        split_seed: int = 0,
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
        if name not in get_args(FineGrained):
            raise ConfigurationError(f"name must be one of {', '.join(get_args(FineGrained))}, got {name!r}.")
        check_number("split_seed", split_seed, 0, 2**64)
        self.kind, self.split, self.split_seed = name, split, split_seed
        self.images = FieldImages(root, image_size, cache, backbone, self.transforms)
        self.embedded = backbone is not None

    def prepare_data(self) -> None:
        """Unpack the images that are not unpacked yet, on one process of each machine."""
        self._load()

    def configure_datasets(self) -> None:
        """Take the images of each split."""
        self.datasets.update(self._load())

    def _load(self) -> Data:
        return self.images.of(partial(load_fine_grained, self.kind), self.split, self.split_seed)
