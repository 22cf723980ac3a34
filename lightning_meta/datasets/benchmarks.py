"""The field's image data sets, in the layouts in which people have them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset, Subset

from lightning_meta.datasets.cifar_classes import CIFAR_FS, FC100
from lightning_meta.datasets.class_dataset import ClassDataset
from lightning_meta.datasets.image_folder import (
    SPLITS,
    ImageFiles,
    list_folders,
    list_splits,
    list_table,
    load_images,
)
from lightning_meta.datasets.packed import Packed, load_packed
from lightning_meta.datasets.pickles import read_arrays
from lightning_meta.errors import DataError, MissingFileError

FineGrained = Literal["cub-200", "flowers-102", "fgvc-aircraft", "dtd", "quickdraw"]
Data = dict[str, Dataset[Any]]
"""The data of each split; of `""` where classes are not divided yet."""

_DRAWINGS = 1000
"""Of each class of Quickdraw, which has up to 340,000."""


def load_cifar(kind: Literal["CIFAR-FS", "FC100"], root: Path, size: int, cache: Path | None) -> Data:
    """CIFAR-100 with the classes of CIFAR-FS or of FC100 in each split.

    Args:
        kind: Which of them.
        root: It holds `cifar-100-python`, as torchvision leaves it, or a folder of classes for each split.
        size: Height and width.
        cache: The folder of the memory maps.

    Raises:
        MissingFileError: Neither is there.
        DataError: It cannot be read.
    """
    folder = root if (root / "meta").is_file() else root / "cifar-100-python"
    if not folder.is_dir():
        return _folders(root, size, cache) or _missing(
            kind, root, "cifar-100-python/{train,test,meta}, which torchvision.datasets.CIFAR100(root, download=True) "
            "leaves there", "{train,val,test}/<class>/*.png",
        )  # fmt: skip
    sources = [folder / name for name in ("train", "test", "meta")]
    for path in sources:
        if not path.is_file():
            raise MissingFileError(f"CIFAR-100 is not complete: there is no file {path}.")
    data = load_packed(sources, partial(_read_cifar, folder), size, cache=cache, name="CIFAR-100")
    whole = [name.split("/") for name in data.classes or []]
    named = ClassDataset(data.inputs, data.targets, [fine for _, fine in whole])
    named.key = data.key
    found: Data = {}
    for split in SPLITS:
        chosen = [
            number
            for number, (coarse, fine) in enumerate(whole)
            if (fine in CIFAR_FS[split] if kind == "CIFAR-FS" else int(coarse) in FC100[split])
        ]
        if chosen:
            found[split] = Subset(named, np.flatnonzero(np.isin(data.targets.numpy(), chosen)).tolist())
    return found


def _read_cifar(folder: Path) -> Packed:
    """Both parts of CIFAR-100; classes are called `<number of the superclass>/<class>`."""
    parts = [read_arrays(folder / name) for name in ("train", "test")]
    names = _of(read_arrays(folder / "meta"), "fine_label_names", folder / "meta")
    pixels = np.concatenate([np.asarray(_of(part, "data", folder)) for part in parts])
    fine, coarse = (
        np.concatenate([np.asarray(_of(part, key, folder)) for part in parts])
        for key in ("fine_labels", "coarse_labels")
    )
    above = dict(zip(fine.tolist(), coarse.tolist(), strict=True))
    classes = [f"{above.get(number, -1)}/{name}" for number, name in enumerate(names)]
    return Packed(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), fine.tolist(), classes)


def load_mini_imagenet(root: Path, size: int, cache: Path | None) -> Data:
    """mini-ImageNet: a folder of classes, a CSV with a folder `images`, or a pickle, for each split.

    Raises:
        MissingFileError: None of them is there.
        DataError: Something cannot be read.
    """

    def find(split: str) -> tuple[list[Path], Callable[[], Packed]] | None:
        phase = "train_phase_train" if split == "train" else split
        for name in (f"mini-imagenet-cache-{split}.pkl", f"miniImageNet_category_split_{phase}.pickle"):
            if (root / name).is_file():
                return [root / name], partial(_read_pickle, root / name)
        return None

    return _of_imagenet("mini-ImageNet", root, size, cache, find) or _missing(
        "mini-ImageNet", root, "mini-imagenet-cache-{train,val,test}.pkl",
        "miniImageNet_category_split_{train_phase_train,val,test}.pickle",
        "{train,val,test}.csv with the columns filename and label, and images/", "{train,val,test}/<class>/*.jpg",
    )  # fmt: skip


def load_tiered_imagenet(root: Path, size: int, cache: Path | None) -> Data:
    """tiered-ImageNet: a folder of classes, a CSV with a folder `images`, or two pickles, for each split.

    Raises:
        MissingFileError: None of them is there.
        DataError: Something cannot be read.
    """

    def find(split: str) -> tuple[list[Path], Callable[[], Packed]] | None:
        images, labels = root / f"{split}_images_png.pkl", root / f"{split}_labels.pkl"
        if images.is_file() and labels.is_file():
            return [images, labels], partial(_read_pickle, images, labels)
        return None

    return _of_imagenet("tiered-ImageNet", root, size, cache, find) or _missing(
        "tiered-ImageNet", root, "{train,val,test}_images_png.pkl and {train,val,test}_labels.pkl",
        "{train,val,test}.csv with the columns filename and label, and images/", "{train,val,test}/<class>/*.jpg",
    )  # fmt: skip


def _of_imagenet(
    name: str, root: Path, size: int, cache: Path | None,
    find: Callable[[str], tuple[list[Path], Callable[[], Packed]] | None],
) -> Data:  # fmt: skip
    found: Data = {}
    for split in SPLITS:
        pickled, table = find(split), root / f"{split}.csv"
        if pickled is not None:
            found[split] = load_packed(*pickled, size, cache=cache, name=f"{name}, {split}")
        elif table.is_file():
            files = list_table(table, root / "images", "filename")
            found[split] = load_images(files[""], size, cache=cache, name=f"{name}, {split}")[0]
    return found or _folders(root, size, cache)


def _read_pickle(path: Path, labels: Path | None = None) -> Packed:
    """A dictionary of images and of places by class, or of images and labels; or a list of files, and labels."""
    content: Any = read_arrays(path)
    if isinstance(content, dict) and "class_dict" in content:
        places = content["class_dict"]
        images, classes = _of(content, "image_data", path), sorted(places)
        targets = np.full(len(images), -1)
        for number, name in enumerate(classes):
            at = np.asarray(places[name], dtype=np.int64)
            if (at < 0).any() or (targets[at] >= 0).any():
                raise DataError(f"{path}: class {name} has places below 0, or images of another class.")
            targets[at] = number
        if (targets < 0).any():
            raise DataError(f"{path}: {(targets < 0).sum()} images belong to no class.")
        return Packed(images, targets.tolist(), classes)
    if labels is not None:
        told = read_arrays(labels)
        numbers = np.asarray(_of(told, "label_specific", labels))
        names = told.get("label_specific_str", [])
    else:
        numbers, names = np.asarray(_of(content, "labels", path)), []
        content = _of(content, "data", path)
    distinct, targets = np.unique(numbers, return_inverse=True)
    # Numbers are of their own in each file.
    own = [str(names[label]) if label < len(names) else f"{path.stem} {label}" for label in distinct.tolist()]
    return Packed(content, targets.reshape(-1).tolist(), own)


def load_fine_grained(name: FineGrained, root: Path, size: int, cache: Path | None) -> Data:
    """A data set of similar classes: a folder of classes for each split, or all of it, not divided yet.

    Raises:
        MissingFileError: It is not there.
        DataError: Something cannot be read.
    """
    divided = _folders(root, size, cache)
    if divided:
        return divided
    if name == "quickdraw":
        return _load_quickdraw(root, size, cache)
    files = _FINE_GRAINED[name](root)
    if files is None:
        layout = {
            "cub-200": "CUB_200_2011/images/<class>/*.jpg",
            "dtd": "dtd/dtd/images/<class>/*.jpg",
            "fgvc-aircraft": "fgvc-aircraft-2013b/data/images/*.jpg with data/images_variant_{trainval,test}.txt",
            "flowers-102": "flowers-102/jpg/*.jpg with flowers-102/imagelabels.mat",
        }[name]
        return _missing(name, root, layout, "{train,val,test}/<class>/*.jpg")
    return {"": load_images(files, size, cache=cache, name=name)[0]}


def _class_folders(*places: str) -> Callable[[Path], ImageFiles | None]:
    def find(root: Path) -> ImageFiles | None:
        return next((list_folders(root / place) for place in places if (root / place).is_dir()), None)

    return find


def _aircraft(root: Path) -> ImageFiles | None:
    data = next((d for d in (root / "fgvc-aircraft-2013b" / "data", root / "data", root) if (d / "images").is_dir()), None)  # fmt: skip  # noqa: E501
    lists = [] if data is None else [data / f"images_variant_{part}.txt" for part in ("trainval", "test")]
    if data is None or not all(path.is_file() for path in lists):
        return None
    lines = [line.split(" ", 1) for path in lists for line in path.read_text().splitlines() if line.strip()]
    return _numbered([(data / "images" / f"{image}.jpg", variant.strip()) for image, variant in lines])


def _flowers(root: Path) -> ImageFiles | None:
    folder = next((d for d in (root / "flowers-102", root) if (d / "imagelabels.mat").is_file()), None)
    if folder is None:
        return None
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingFileError("The classes of flowers-102 are in a MATLAB file: pip install scipy.") from error
    labels = loadmat(folder / "imagelabels.mat")["labels"].ravel().tolist()
    return _numbered([(folder / "jpg" / f"image_{i:05}.jpg", f"{label:03}") for i, label in enumerate(labels, 1)])


def _numbered(pairs: list[tuple[Path, str]]) -> ImageFiles:
    classes = sorted({label for _, label in pairs})
    numbers = {label: number for number, label in enumerate(classes)}
    return ImageFiles([str(path) for path, _ in pairs], [numbers[label] for _, label in pairs], classes)


_FINE_GRAINED: Mapping[str, Callable[[Path], ImageFiles | None]] = {
    "cub-200": _class_folders("CUB_200_2011/images", "images"),
    "dtd": _class_folders("dtd/dtd/images", "dtd/images", "images"),
    "fgvc-aircraft": _aircraft,
    "flowers-102": _flowers,
}


def _load_quickdraw(root: Path, size: int, cache: Path | None) -> Data:
    files = sorted((root / "quickdraw").glob("*.npy")) or sorted(root.glob("*.npy"))
    if not files:
        return _missing(
            "quickdraw", root, "quickdraw/<class>.npy, bitmaps of 28x28 bytes", "{train,val,test}/<class>/*.png"
        )

    def read() -> Packed:
        drawings = [np.load(path, mmap_mode="r", allow_pickle=False)[:_DRAWINGS].reshape(-1, 28, 28) for path in files]
        targets = [number for number, own in enumerate(drawings) for _ in range(len(own))]
        return Packed(np.concatenate(drawings), targets, [path.stem for path in files])

    return {"": load_packed(files, read, size, grayscale=True, cache=cache, name="Quickdraw")}


def _folders(root: Path, size: int, cache: Path | None) -> Data:
    return {
        split: load_images(files, size, cache=cache, name=f"{split} images")[0]
        for split, files in list_splits(root).items()
    }


def _of(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise DataError(f"{path} holds no {key!r}, but {sorted(content) if isinstance(content, dict) else type(content).__name__}.")  # fmt: skip  # noqa: E501
    return content[key]


def _missing(name: str, root: Path, *layouts: str) -> Data:
    either = "; or ".join(f"{root}/{layout}" for layout in layouts)
    raise MissingFileError(f"{name} is not in {root}. What is needed there: {either}. Nothing is downloaded.")
