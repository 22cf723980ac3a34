"""Images that are packed in a few files: unpacked once, and kept as one memory map."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from lightning_meta.datasets.class_dataset import ClassDataset
from lightning_meta.datasets.image_folder import fitted
from lightning_meta.errors import DataError, first_line
from lightning_meta.files import cache_folder, new_array, write_atomically

_FORMAT = 1


class Packed(NamedTuple):
    """Images and their classes.

    Attributes:
        images: A sequence: of each example `(H, W)` or `(H, W, 3)` uint8, or the bytes of an image file.
        targets: The class number of each.
        classes: The name of each class number.
    """

    images: Any
    targets: Sequence[int]
    classes: Sequence[str]


def load_packed(
    sources: Iterable[Path],
    read: Callable[[], Packed],
    size: int,
    *,
    grayscale: bool = False,
    cache: Path | None = None,
    name: str = "images",
) -> ClassDataset:
    """The images of some files as one memory map of `(C, size, size)` uint8 each, which is made once.

    Args:
        sources: The files, whose sizes and times tell whether the memory map is up to date.
        read: Reads them.
        size: Height and width.
        grayscale: One channel instead of three.
        cache: The folder of the memory maps; `lightning_meta` in the user's folder of caches if `None`.
        name: What to call them in the progress bar and in errors, and what tells them from others in the same files.

    Raises:
        DataError: An image cannot be read, or the memory map cannot be written.
    """
    states = [(str(path.absolute()), (state := path.stat()).st_size, state.st_mtime_ns) for path in sources]
    key = hashlib.sha256(repr((_FORMAT, name, size, grayscale, states)).encode()).hexdigest()[:32]
    target = (cache_folder() if cache is None else cache) / f"{key}.npy"
    about = target.with_suffix(".json")
    if not (target.is_file() and about.is_file()):
        packed = read()
        shape = (len(packed.images), 1 if grayscale else 3, size, size)
        with new_array(target, shape, np.uint8, "The images") as images:
            progress = tqdm(packed.images, f"Unpacking {name}", unit="image", disable=len(packed.images) < 200)
            for place, image in enumerate(progress):
                images[place] = _pixels(image, size, grayscale, f"{name}: image {place}")
            classes = {"targets": [int(target) for target in packed.targets], "classes": [*map(str, packed.classes)]}
            write_atomically(about, json.dumps(classes).encode())
    known = json.loads(about.read_text())
    data = ClassDataset(torch.from_numpy(np.load(target, mmap_mode="c")), known["targets"], known["classes"])
    data.key = target.stem
    return data


def _pixels(image: Any, size: int, grayscale: bool, which: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        array = image if isinstance(image, np.ndarray) else np.frombuffer(image, np.uint8)
        if array.ndim == 1 or array.shape[1:] == (1,):  # a file, as an array of its bytes
            with Image.open(BytesIO(array.tobytes())) as file:
                return fitted(file, size, grayscale)
        if array.dtype != np.uint8:
            raise OSError(f"pixels must be bytes, not {array.dtype}")
        if array.shape == (size, size, 3) and not grayscale:
            return np.ascontiguousarray(array.transpose(2, 0, 1))
        return fitted(Image.fromarray(array), size, grayscale)
    except Exception as error:  # whatever a broken file makes a decoder raise
        raise DataError(f"{which} cannot be read: {first_line(error)}.") from error
