"""Omniglot."""

from pathlib import Path
from typing import Any, Literal

from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.datasets import omniglot


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
        kwargs: See `EpisodicDataModule`, from `n_way` on.

    Raises:
        FileNotFoundError: In `setup`, the data is not under `root`.
        ValueError: In `setup`, the data is not complete or an image cannot be read.
    """

    def __init__(
        self,
        root: str,
        split: Literal["random", "alphabet"] = "random",
        rotations: bool = True,
        image_size: int = 28,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if split not in ("random", "alphabet"):
            raise ValueError(f"split must be 'random' or 'alphabet', got {split!r}.")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}.")
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
