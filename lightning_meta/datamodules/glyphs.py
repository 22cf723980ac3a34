"""The embedded data set: characters drawn from a seed."""

from typing import Any

from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datasets.glyphs import glyphs


class GlyphsDataModule(EpisodicDataModule):
    """Tasks of Omniglot-like characters that are drawn in seconds, with nothing to download.

    Inputs are images `(B, examples, 1, 28, 28)`, ink 1 on 0; every class has 20 drawings. Splits have classes of their
    own.

    Args:
        train_classes: Number of classes to meta-train on.
        val_classes: Number of validation classes.
        test_classes: Number of test classes.
        glyphs_seed: Another seed, another alphabet.
        kwargs: See `EpisodicDataModule`, from `n_way` on.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.classes = {"train": train_classes, "val": val_classes, "test": test_classes}
        self.glyphs_seed = glyphs_seed
        for split, count in self.classes.items():
            if type(count) is not int or count < 1:
                raise ValueError(f"{split}_classes must be a whole number of at least 1, got {count!r}.")
        if type(glyphs_seed) is not int or not 0 <= glyphs_seed < 2**64:
            raise ValueError(f"glyphs_seed must be a whole number of at least 0 and below 2**64, got {glyphs_seed!r}.")

    def configure_datasets(self) -> None:
        """Draw the classes of every split."""
        start = 0
        # Evaluation classes come first, so that they stay the same whatever the number of training classes.
        for split in ("test", "val", "train"):
            self.datasets[split] = glyphs(range(start, start + self.classes[split]), self.glyphs_seed)
            start += self.classes[split]
