"""What the data modules of the field's image data sets have in common."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.datamodules.splits import class_split
from lightning_meta.datamodules.transforms import Transform
from lightning_meta.datasets.benchmarks import Data
from lightning_meta.datasets.features import encode_images
from lightning_meta.datasets.image_folder import SPLITS
from lightning_meta.errors import ArgumentTypeError, ConfigurationError


class FieldImages:
    """Loads images, divides their classes where that is still to be done, and encodes them where that is asked for.

    Args:
        root: The folder of the data.
        image_size: Height and width.
        cache: The folder of the memory maps; `lightning_meta` in the user's folder of caches if `None`.
        backbone: A frozen network whose features take the place of the images.
        transforms: Those of the data module: see `check_backbone`.

    Raises:
        ArgumentTypeError: A value is of another kind.
        ConfigurationError: A value does not make sense.
    """

    def __init__(
        self,
        root: str,
        image_size: int,
        cache: str | None,
        backbone: nn.Module | None,
        transforms: Mapping[str, tuple[Transform | None, Transform | None]],
    ) -> None:
        check_number("image_size", image_size)
        self.root, self.size = Path(root).expanduser(), image_size
        self.cache = None if cache is None else Path(cache).expanduser()
        self.backbone = check_backbone(backbone, transforms)

    def of(
        self,
        load: Callable[[Path, int, Path | None], Data],
        fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
        split_seed: int = 0,
    ) -> Data:
        """The data of each split.

        Args:
            load: Loads it, given folder, size and cache.
            fractions: The parts of the classes, where `load` does not divide them.
            split_seed: Another seed, other classes in each split.
        """
        found = load(self.root, self.size, self.cache)
        if set(found) == {""}:
            parts = class_split(found[""], fractions, split_seed)
            found = {split: part for split, part in zip(SPLITS, parts, strict=True) if len(part)}
        if self.backbone is None:
            return found
        return {
            split: encode_images(data, self.backbone, cache=self.cache, name=f"{split} images")
            for split, data in found.items()
        }


def check_backbone(
    backbone: nn.Module | None, transforms: Mapping[str, tuple[Transform | None, Transform | None]]
) -> nn.Module | None:
    """Refuse a backbone that cannot be run once for all.

    Raises:
        ArgumentTypeError: It is not an `nn.Module`.
        ConfigurationError: Images would have to be transformed before it.
    """
    if backbone is None:
        return None
    if not isinstance(backbone, nn.Module):
        raise ArgumentTypeError(f"backbone must be an nn.Module, got {backbone!r}.")
    if any(transform is not None for pair in transforms.values() for transform in pair):
        raise ConfigurationError(
            "The features of a backbone are computed once, so that transforms of images have no effect. Leave out "
            "either backbone= or the transforms; a network with a frozen backbone takes transformed images."
        )
    return backbone
