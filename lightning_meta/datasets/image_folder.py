"""Photos in folders, or named by a table: decoded once, and kept as one memory map."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Subset
from tqdm import tqdm

from lightning_meta.datasets.class_dataset import ClassDataset
from lightning_meta.errors import ConfigurationError, DataError, MissingFileError, first_line
from lightning_meta.files import cache_folder, new_array, write_atomically

OnUnreadable = Literal["raise", "skip"]

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
SPLITS = ("train", "val", "test")
_FORMAT = 2
_SHOWN = 200
"""From so many images on there is a progress bar."""
_TOGETHER = 64
"""How many images a thread decodes before it tells of them."""


class ImageFiles(NamedTuple):
    """Files of images, class by class.

    Attributes:
        paths: The files, as text: of many thousands, `Path`s would take tens of megabytes.
        targets: The class number of each.
        classes: The name of each class number.
    """

    paths: list[str]
    targets: list[int]
    classes: list[str]


def list_folders(root: Path) -> ImageFiles:
    """The images in the subfolders of a folder, each of which is a class, in the order of the names.

    Hidden files and folders, and files that are no images by their names, are left out.

    Raises:
        MissingFileError: There is no such folder.
        ConfigurationError: There are no images in subfolders.
    """
    if not root.is_dir():
        raise MissingFileError(f"There is no folder {root}.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {folder.name: _images(folder) for folder in folders}
    return _by_class({name: paths for name, paths in found.items() if paths}, root)


def _images(folder: Path) -> list[str]:
    return sorted(_walk(str(folder)), key=lambda path: path.split(os.sep))


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
                yield entry.path


def _by_class(found: Mapping[str, Sequence[str]], source: Path) -> ImageFiles:
    if not found:
        raise ConfigurationError(
            f"{source} has no images. Images of a class belong into a folder with its name, {source}/<class>/*.jpg, or "
            f"with splits of one's own {source}/train/<class>/*.jpg and so on."
        )
    paths = [path for files in found.values() for path in files]
    targets = [number for number, files in enumerate(found.values()) for _ in files]
    return ImageFiles(paths, targets, list(found))


def list_splits(root: Path) -> dict[str, ImageFiles]:
    """The images of each split that has a folder `train`, `val` or `test` of its own; of none if there is no such."""
    return {split: list_folders(root / split) for split in SPLITS if (root / split).is_dir()}


def list_table(table: Path, root: Path, column: str = "path") -> dict[str, ImageFiles]:
    """The images that a CSV names, of each split if it has a column `split`, else as `""`.

    Args:
        table: A file whose first line names its columns, that of the paths and `label` among them.
        root: What relative paths are relative to.
        column: The name of the column of the paths.

    Raises:
        MissingFileError: There is no such file.
        ConfigurationError: A column is missing, or a split is none.
    """
    if not table.is_file():
        raise MissingFileError(f"There is no file {table}.")
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if not {column, "label"} <= set(columns):
            raise ConfigurationError(
                f"{table} needs the columns {column} and label; its first line has {list(columns)}."
            )
        found: dict[str, dict[str, list[str]]] = {}
        for row in reader:
            split = (row.get("split") or "").strip()
            if split not in ("", *SPLITS):
                raise ConfigurationError(f"{table}, line {reader.line_num}: split {split!r} is not train, val or test.")
            if not (row["label"] or "").strip() or not row[column]:
                raise DataError(f"{table}, line {reader.line_num}: a path or a label is missing.")
            found.setdefault(split, {}).setdefault(row["label"].strip(), []).append(str(root / row[column]))
    return {split: _by_class(dict(sorted(classes.items())), table) for split, classes in found.items()}


def read_image(path: str | Path, size: int, grayscale: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image as `(C, size, size)` uint8: upright, its shorter side resized, and the middle of the longer one.

    What is transparent becomes white; 16 bits are scaled to 8.

    Raises:
        OSError: It cannot be read. (Pillow raises others, too.)
    """
    with Image.open(path) as file:
        file.draft("L" if grayscale else "RGB", (2 * size, 2 * size))  # JPEG decodes smaller images faster
        image: Image.Image = ImageOps.exif_transpose(file)
        image.load()
    return fitted(image, size, grayscale)


def fitted(image: Image.Image, size: int, grayscale: bool = False) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image that is read and upright as `(C, size, size)` uint8: see `read_image`.

    Raises:
        OSError: It is one of floats.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        is_16_bit = image.mode.startswith("I;16") or values.max() > 255
        image = Image.fromarray((values / (257 if is_16_bit else 1)).round().clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise OSError("images of floats have no range that could be known")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if grayscale else "RGB")
    pixels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return pixels[None] if grayscale else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def load_images(
    files: ImageFiles,
    size: int,
    *,
    grayscale: bool = False,
    on_unreadable: OnUnreadable = "raise",
    cache: Path | None = None,
    name: str = "images",
) -> tuple[Subset[Any], dict[str, str]]:
    """Decode images, once for the same files and sizes, into a memory map that is larger than memory if it has to be.

    Args:
        files: What to decode.
        size: Height and width.
        grayscale: One channel instead of three.
        on_unreadable: Whether an image that cannot be read is an error that names it, or is left out.
        cache: The folder of the memory maps; `lightning_meta` in the user's folder of caches if `None`.
        name: What to call them in the progress bar and in errors.

    Returns:
        The images that can be read, `(C, size, size)` uint8 each, with `targets` and `classes`; and why the others
        cannot, by their paths.

    Raises:
        DataError: Images cannot be read, or the memory map cannot be written.
    """
    folder = cache_folder() if cache is None else cache
    shape = (len(files.paths), 1 if grayscale else 3, size, size)
    target = folder / f"{_key(files, shape)}.npy"
    about = target.with_suffix(".json")
    if not (target.is_file() and about.is_file()):
        _decode(files, shape, target, about, name)
    unreadable: dict[str, str] = json.loads(about.read_text())
    if unreadable and on_unreadable == "raise":
        listed = "; ".join(f"{path} ({reason})" for path, reason in list(unreadable.items())[:5])
        more = f"; and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        raise DataError(
            f"{name}: {len(unreadable)} of {len(files.paths)} images cannot be read: {listed}{more}. Mend or remove "
            "them, or leave them out by on_unreadable='skip'."
        )
    data = ClassDataset(torch.from_numpy(np.load(target, mmap_mode="c")), files.targets, files.classes)
    data.key = target.stem
    return Subset(data, [i for i, path in enumerate(files.paths) if path not in unreadable]), unreadable


def _key(files: ImageFiles, shape: tuple[int, ...]) -> str:
    """Of the files as they are now and the images that are made of them."""
    digest = hashlib.sha256(repr((_FORMAT, shape)).encode())
    for path in files.paths:
        try:
            state = os.stat(path)
            size, time = state.st_size, state.st_mtime_ns
        except OSError:
            size, time = -1, -1
        digest.update(f"{os.path.abspath(path)}\0{size} {time}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _decode(files: ImageFiles, shape: tuple[int, ...], target: Path, about: Path, name: str) -> None:
    unreadable: dict[str, str] = {}

    def decode(places: range) -> int:
        for place in places:
            path = files.paths[place]
            try:
                images[place] = read_image(path, shape[-1], shape[1] == 1)
            except Exception as error:  # whatever a broken file makes a decoder raise
                unreadable[path] = first_line(error)
        return len(places)

    count = len(files.paths)
    with new_array(target, shape, np.uint8, "The decoded images") as images, ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = [range(start, min(start + _TOGETHER, count)) for start in range(0, count, _TOGETHER)]
        with tqdm(desc=f"Decoding {name}", total=count, unit="image", disable=count < _SHOWN) as progress:
            for done in pool.map(decode, parts):
                progress.update(done)
        write_atomically(about, json.dumps(unreadable, indent=1).encode())
