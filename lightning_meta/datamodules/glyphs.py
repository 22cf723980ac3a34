"""The embedded data set: characters drawn from a seed."""

from collections.abc import Callable
from typing import Any

from lightning_meta.datamodules.episodic import EpisodicDataModule
from lightning_meta.datasets.glyphs import glyphs
from lightning_meta.errors import ConfigurationError


class GlyphsDataModule(EpisodicDataModule):
    """Tasks of Omniglot-like characters that are drawn in seconds, with nothing to download.

    Inputs are images `(B, examples, 1, 28, 28)`, ink 1 on 0; every class has 20 drawings. Splits have classes of their
    own.

    Args:
        train_classes: Number of classes to meta-train on.
        val_classes: Number of validation classes.
        test_classes: Number of test classes.
        glyphs_seed: Another seed, another alphabet.
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
        ConfigurationError: At construction, a number is out of its range. In `setup`, the classes cannot give such
            tasks, or the devices do not divide the meta-batch.

    Example:
        >>> data = GlyphsDataModule(train_classes=20, val_classes=5, test_classes=5, meta_batch_size=2)
        >>> data.setup()
        >>> next(iter(data.train_dataloader())).support.inputs.shape
        torch.Size([2, 5, 1, 28, 28])
    """

    def __init__(
        self,
        train_classes: int = 1000,
        val_classes: int = 100,
        test_classes: int = 200,
        glyphs_seed: int = 0,
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
        self.classes = {"train": train_classes, "val": val_classes, "test": test_classes}
        self.glyphs_seed = glyphs_seed
        for split, count in self.classes.items():
            if type(count) is not int or count < 1:
                raise ConfigurationError(f"{split}_classes must be a whole number of at least 1, got {count!r}.")
        if type(glyphs_seed) is not int or not 0 <= glyphs_seed < 2**64:
            raise ConfigurationError(
                f"glyphs_seed must be a whole number of at least 0 and below 2**64, got {glyphs_seed!r}."
            )

    def configure_datasets(self) -> None:
        """Draw the classes of every split."""
        start = 0
        # Evaluation classes come first, so that they stay the same whatever the number of training classes.
        for split in ("test", "val", "train"):
            self.datasets[split] = glyphs(range(start, start + self.classes[split]), self.glyphs_seed)
            start += self.classes[split]
