"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each."""

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_meta.datasets.class_dataset import ClassDataset
from lightning_meta.errors import ConfigurationError, DataError, MissingFileError, first_line
from lightning_meta.files import write_atomically
from lightning_meta.randomness import uniforms

FOLDER = "omniglot-py"
CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS = 20
SPLITS = ("train", "val", "test")

_CACHE_FORMAT = 2
_VAL_ALPHABETS = 5


def is_there(root: str | Path) -> bool:
    """Whether the folders that torchvision leaves lie under `root`."""
    return all((Path(root) / FOLDER / part).is_dir() for part in CHARACTERS)


def download(root: str | Path) -> None:
    """Download Omniglot with torchvision, unless its folders are there.

    Raises:
        DataError: It could not be downloaded.
    """
    if is_there(root):
        return
    from torchvision.datasets import Omniglot

    try:
        for background in (True, False):
            Omniglot(str(root), background=background, download=True)
    except Exception as error:
        raise DataError(
            f"There is no Omniglot under {root}, and downloading it failed: {error}. Put the folders "
            f"images_background and images_evaluation into {Path(root) / FOLDER}."
        ) from error


def load_omniglot(root: str | Path, image_size: int = 28) -> tuple[Tensor, list[str]]:
    """All drawings, resized, from a cache file beside the images if there is one that fits them.

    Args:
        root: The folder that holds `omniglot-py`.
        image_size: Height and width to resize to, antialiased.

    Returns:
        uint8 images `(1623, 20, 1, image_size, image_size)`, ink 255 on 0, and the characters' names
        `<part>/<alphabet>/<character>`, in the order of the names.

    Raises:
        MissingFileError: A folder is missing.
        ConfigurationError: The folders are not complete, or an image cannot be read; the message names it.
    """
    folder = Path(root) / FOLDER
    files = _list_files(folder)
    key = hashlib.sha256(repr((_CACHE_FORMAT, image_size, files)).encode()).hexdigest()
    cache = folder / f"images-{image_size}.pt"
    shape = (len(files), DRAWINGS, 1, image_size, image_size)
    if cache.is_file():
        try:
            return _checked(torch.load(cache, weights_only=True), key, shape), list(files)
        except Exception as error:
            warnings.warn(f"The cache {cache} is made anew: {first_line(error)}", stacklevel=2)
    images = torch.stack(
        [_read_image(folder / name / file, image_size) for name, listed in files.items() for file, _ in listed]
    ).view(shape)
    _cache({"key": key, "digest": _digest(images), "images": images}, cache)
    return images, list(files)


def _checked(content: Any, key: str, shape: tuple[int, ...]) -> Tensor:
    """The images of a cache file, if it is of these drawings and nothing of it has changed since.

    Raises:
        ConfigurationError: It is of others, of another version of the package, or not what was written.
    """
    if not isinstance(content, dict) or content.get("key") != key:
        raise ConfigurationError("it is of other drawings, or of another version.")
    images = content.get("images")
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or tuple(images.shape) != shape:
        raise ConfigurationError("it does not hold the images.")
    if content.get("digest") != _digest(images):
        raise ConfigurationError("it has been changed.")
    return images


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()


def _list_files(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """File names and sizes of every character, after checking that all are there."""
    files: dict[str, list[tuple[str, int]]] = {}
    for part, expected in CHARACTERS.items():
        if not (folder / part).is_dir():
            raise MissingFileError(
                f"There is no folder {folder / part}. root must be the folder that holds {FOLDER}/; with download=True "
                "Omniglot is downloaded there."
            )
        count = len(files)
        for alphabet in sorted(entry.name for entry in os.scandir(folder / part) if entry.is_dir()):
            for character in sorted(entry.name for entry in os.scandir(folder / part / alphabet) if entry.is_dir()):
                name = f"{part}/{alphabet}/{character}"
                drawings = [entry for entry in os.scandir(folder / name) if entry.name.endswith(".png")]
                files[name] = sorted((entry.name, entry.stat().st_size) for entry in drawings)
                if len(drawings) != DRAWINGS:
                    raise ConfigurationError(
                        f"{folder / name} has {len(drawings)} drawings instead of {DRAWINGS}: the data is not "
                        f"complete. Delete {folder / part} and unpack or download it again."
                    )
        if len(files) - count != expected:
            raise ConfigurationError(
                f"{folder / part} has {len(files) - count} characters instead of {expected}: the data is not complete. "
                "Delete it and unpack or download it again."
            )
    return files


def _read_image(path: Path, size: int) -> Tensor:
    try:
        with Image.open(path) as image:
            resized = image.convert("L").resize((size, size), Image.Resampling.LANCZOS)
    except Exception as error:
        raise ConfigurationError(
            f"The image {path} cannot be read: {error}. Unpack or download the data again."
        ) from error
    return torch.from_numpy(255 - np.asarray(resized)).unsqueeze(0)


def _cache(content: dict[str, Any], path: Path) -> None:
    """Write the cache; data in a folder that cannot be written to is still good to use."""
    try:
        file = io.BytesIO()
        torch.save(content, file)
        write_atomically(path, file.getbuffer())
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"The images could not be cached in {path}, so every start reads them anew: {error}", stacklevel=3
        )


def split_characters(
    names: Sequence[str], split: Literal["random", "alphabet"] = "random", sizes: tuple[int, int] = (1100, 100)
) -> dict[str, list[int]]:
    """Divide characters into train, val and test.

    Args:
        names: Characters `<part>/<alphabet>/<character>`.
        split: `"random"`: characters shuffled by a fixed seed, as in MAML's code. `"alphabet"`: five background
            alphabets, chosen by a fixed seed, for val, the other background alphabets for train, and the evaluation
            alphabets for test, so that a test is on alphabets never seen.
        sizes: For `"random"`, the numbers of train and of val characters; the rest is for test.

    Returns:
        For each split the positions of its characters in `names`.

    Raises:
        ConfigurationError: `split` is neither.
    """

    def shuffled(count: int) -> list[int]:
        order: list[int] = uniforms(0, "omniglot_split", [0], count)[0].argsort(kind="stable").tolist()
        return order

    if split == "random":
        order = shuffled(len(names))
        train, val = sizes
        return dict(zip(SPLITS, (order[:train], order[train : train + val], order[train + val :]), strict=True))
    if split != "alphabet":
        raise ConfigurationError(f"split must be 'random' or 'alphabet', got {split!r}.")
    alphabets = sorted({name.rsplit("/", 1)[0] for name in names if name.startswith("images_background/")})
    held_out = {alphabets[i] for i in shuffled(len(alphabets))[:_VAL_ALPHABETS]}
    result: dict[str, list[int]] = {name: [] for name in SPLITS}
    for position, name in enumerate(names):
        alphabet = name.rsplit("/", 1)[0]
        result["test" if alphabet not in alphabets else "val" if alphabet in held_out else "train"].append(position)
    return result


def characters(images: Tensor, names: Sequence[str], chosen: Sequence[int], *, rotations: bool) -> ClassDataset:
    """The data set of some characters.

    Args:
        images: `(characters, DRAWINGS, 1, H, W)`.
        names: The characters' names.
        chosen: Positions of the characters to take.
        rotations: Whether each character turned by 90, 180 and 270 degrees is a class of its own besides.
    """
    own = images[torch.as_tensor(chosen)]
    turns = range(4) if rotations else range(1)
    classes = [names[i] + (f"/rot{90 * k:03d}" if k else "") for k in turns for i in chosen]
    turned = torch.cat([torch.rot90(own, k, (-2, -1)) for k in turns])
    return ClassDataset(turned.flatten(0, 1), torch.arange(len(classes)).repeat_interleave(DRAWINGS), classes)
