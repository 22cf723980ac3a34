"""Omniglot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning_meta.datamodules.episodic import EpisodicDataModule
from lightning_meta.datasets import omniglot
from lightning_meta.errors import ConfigurationError


class OmniglotDataModule(EpisodicDataModule):
    """Tasks of handwritten characters: 1,623 of them in 50 alphabets, 20 drawings each.

    Inputs are images `(B, examples, 1, image_size, image_size)`, ink 1 on 0. The drawings are resized once and kept in
    one file beside them. Data: Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050.

    Args:
        root: The folder that holds `omniglot-py`, as torchvision's `Omniglot` leaves it.
        split: `"random"`: 1,100 characters to train, 100 for validation and 423 to test, shuffled by a fixed seed as in
            MAML's code. `"alphabet"`: torchvision's background alphabets to train and, five of them, for
            validation; its evaluation alphabets to test.
        rotations: Whether in training each character turned by 90, 180 and 270 degrees is a class of its own besides.
        image_size: Height and width in pixels.
        download: Whether to download the data where it is not there.
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
        ConfigurationError: At construction, a number is out of its range. In `setup`, the data is not complete, cannot
            be read or cannot give such tasks, or the devices do not divide the meta-batch.
        MissingFileError: In `setup`, the data is not under `root`.
    """

    def __init__(
        self,
        root: str,
        split: Literal["random", "alphabet"] = "random",
        rotations: bool = True,
        image_size: int = 28,
        download: bool = True,
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
        if split not in ("random", "alphabet"):
            raise ConfigurationError(f"split must be 'random' or 'alphabet', got {split!r}.")
        if image_size < 1:
            raise ConfigurationError(f"image_size must be at least 1, got {image_size}.")
        self.root = Path(root).expanduser()
        self.split = split
        self.rotations = rotations
        self.image_size = image_size
        self.download = download

    def prepare_data(self) -> None:
        """Download the data if it is not there, and make the cache, on one process of each machine."""
        if self.download:
            omniglot.download(self.root)
        omniglot.load_omniglot(self.root, self.image_size)

    def configure_datasets(self) -> None:
        """Divide the characters into splits."""
        images, names = omniglot.load_omniglot(self.root, self.image_size)
        for split, chosen in omniglot.split_characters(names, self.split).items():
            rotations = self.rotations and split == "train"
            self.datasets[split] = omniglot.characters(images, names, chosen, rotations=rotations)
