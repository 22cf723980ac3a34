"""Your own images: folders of classes, or a table that names them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.utils.data import Dataset

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.datamodules.episodic import EpisodicDataModule
from lightning_meta.datamodules.field_images import check_backbone
from lightning_meta.datamodules.labelled import SameNames, base_of
from lightning_meta.datamodules.splits import SplitRecord, class_split
from lightning_meta.datasets.features import encode_images
from lightning_meta.datasets.image_folder import (
    SPLITS,
    ImageFiles,
    OnUnreadable,
    list_folders,
    list_splits,
    list_table,
    load_images,
)
from lightning_meta.errors import ConfigurationError
from lightning_meta.task import Task


class ImageFolderDataModule(EpisodicDataModule):
    """Tasks of your own images: `root/<class>/*.jpg`, `root/{train,val,test}/<class>/*.jpg`, or a table of them.

    Images are decoded once, with a progress bar, into a memory map in a folder of caches, and read from there at the
    speed of tensors, more than memory holds, too. They are turned upright, resized by their shorter side and cropped to
    the middle; 16 bits are scaled to 8, what is transparent becomes white. Each is looked at before training starts.

    Where splits have no folders of their own, the classes are divided at random by `split_seed`; which classes each
    split has is written to `classes.json` in the run's folder.

    Args:
        root: The folder of images.
        image_size: Height and width of the network's inputs.
        grayscale: One channel instead of three.
        split: Parts of the classes for train, val and test, where splits have no folders of their own.
        split_seed: Another seed, other classes in each split.
        table: A CSV with the columns path (relative to `root`), label and, if there are splits, split.
        on_unreadable: Whether images that cannot be read are an error that names them (`raise`), or left out (`skip`).
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
        same_names: Whether classes of one name in two splits are refused, or `different` ones, like folders 0, 1, ...
        train_transform: Of each training example: torchvision's v2, or any function of one image; see `Transforms`.
        train_query_transform: Of the query examples in training, if those get another one.
        eval_transform: Of each example in validation and test; what is random in it is the same in every run.
        eval_query_transform: Of the query examples in validation and test, if those get another one.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a value does not make sense. In `setup`, there are no images, the classes
            cannot give such tasks, splits share classes, or the devices do not divide the meta-batch.
        DataError: In `prepare_data` and `setup`, an image cannot be read; the message names the file.
        MissingFileError: There is no such folder or table.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 84,
        grayscale: bool = False,
        split: tuple[float, float, float] = (0.6, 0.2, 0.2),
        split_seed: int = 0,
        table: str | None = None,
        on_unreadable: OnUnreadable = "raise",
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
        same_names: SameNames = "refuse",
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
            same_names=same_names,
            train_transform=train_transform,
            train_query_transform=train_query_transform,
            eval_transform=eval_transform,
            eval_query_transform=eval_query_transform,
        )
        check_number("image_size", image_size)
        check_number("split_seed", split_seed, 0, 2**64)
        if on_unreadable not in get_args(OnUnreadable):
            raise ConfigurationError(f"on_unreadable must be 'raise' or 'skip', got {on_unreadable!r}.")
        self.root = Path(root).expanduser()
        self.image_size, self.grayscale = image_size, grayscale
        self.split, self.split_seed = split, split_seed
        self.table = None if table is None else Path(table).expanduser()
        self.on_unreadable: OnUnreadable = on_unreadable
        self.cache = None if cache is None else Path(cache).expanduser()
        self.backbone = check_backbone(backbone, self.transforms)
        self.embedded = self.backbone is not None
        self.split_classes: dict[str, list[str]] = {}
        """The classes of each split, once `setup` has run."""
        self._record = SplitRecord()
        self._prepared: dict[str, Dataset[Any]] | None = None

    def prepare_data(self) -> None:
        """Decode the images that are not decoded yet, on one process of each machine."""
        self._prepared = self._load()

    def configure_datasets(self) -> None:
        """Take the decoded images, and divide their classes into splits."""
        found = self._load() if self._prepared is None else self._prepared  # 60,000 files are looked at once
        self._prepared = None
        if set(found) == {""}:
            parts = class_split(found[""], self.split, self.split_seed)
            found = {name: part for name, part in zip(SPLITS, parts, strict=True) if len(part)}
        self.datasets.update(found)
        for split, data in found.items():
            base: Any = base_of(data)
            numbers = np.unique(base.targets.numpy()[np.asarray(data.indices)])  # type: ignore[attr-defined]
            self.split_classes[split] = [base.classes[number] for number in numbers]
        sizes = ", ".join(f"{len(names)} classes to {split}" for split, names in self.split_classes.items())
        rank_zero_info(f"{self.root}: {sizes}.")

    def _load(self) -> dict[str, Dataset[Any]]:
        """The images of each split; of `""` where splits are not told."""
        found: dict[str, Dataset[Any]] = {}
        for split, files in self._files().items():
            name = f"{split} images" if split else "images"
            found[split], unreadable = load_images(
                files, self.image_size, grayscale=self.grayscale, on_unreadable=self.on_unreadable, cache=self.cache,
                name=name,
            )  # fmt: skip
            if self.backbone is not None:
                found[split] = encode_images(found[split], self.backbone, cache=self.cache, name=name)
            if unreadable:
                rank_zero_info(f"{name}: {len(unreadable)} cannot be read and are left out: {', '.join(unreadable)}.")
        return found

    def _files(self) -> dict[str, ImageFiles]:
        if self.table is not None:
            found = list_table(self.table, self.root)
            if "" in found and len(found) > 1:
                raise ConfigurationError(f"{self.table} has a split for some images only.")
            return found
        return list_splits(self.root) or {"": list_folders(self.root)}

    def on_after_batch_transfer(self, batch: Task, dataloader_idx: int) -> Task:
        """Finish a batch on the device; with the first, write down the classes of each split."""
        self._record(self._running_trainer(), self.split_classes)
        return super().on_after_batch_transfer(batch, dataloader_idx)
