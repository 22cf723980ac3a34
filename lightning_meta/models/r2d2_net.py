"""The network of R2-D2's paper."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.models.body_and_head import BodyAndHead
from lightning_meta.models.normalize import Normalize, first_layers
from lightning_meta.models.resnet12 import check_drop_rate, check_sizes


class _LastTwo(nn.Module):
    """Blocks, of which the last two give the features; those of the last but one are pooled to the same size."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.pool = nn.MaxPool2d(2, stride=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        return torch.cat([self.pool(x).flatten(-3), self.last(x).flatten(-3)], -1)


class R2D2Net(BodyAndHead):
    """Four blocks of 3x3 convolution, batch normalization, 2x2 max-pooling and leaky ReLU, and a linear head.

    The features are those of the last two blocks together, many more than `Conv4` has: ridge regression can tell
    classes apart by more of them than it has examples. The last pooling has a stride of 1. Paper: Bertinetto,
    Henriques, Torr, Vedaldi 2019, arXiv:1805.08136. Their program drops features after the last two blocks in
    meta-training, here `drop_rate`; what is drawn differs between tasks run together and one after another.

    Attributes:
        body: Images `(examples, in_channels, image_size, image_size)` to features
            `(examples, (widths[2] + widths[3]) * (image_size // 8 - 1) ** 2)`.
        head: Features to `(examples, n_way)` logits.

    Args:
        n_way: Number of classes of a task.
        in_channels: Channels of the images.
        widths: Filters of the four blocks; `[64, 64, 64, 64]` is the small network of the paper.
        drop_rate: About which part of the features is dropped after the last two blocks in training.
        image_size: Height and width of the images, at least 16.
        normalize: What to do first to images in [0, 1]: see `Normalize`.

    Raises:
        ConfigurationError: A number is out of its range, or there are not four widths.

    Example:
        >>> network = R2D2Net(n_way=5, widths=[64, 64, 64, 64])
        >>> network.body(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1152])
    """

    def __init__(
        self,
        n_way: int,
        in_channels: int = 3,
        widths: Sequence[int] = (96, 192, 384, 512),
        drop_rate: float = 0.0,
        image_size: int = 32,
        normalize: Normalize | None = None,
    ) -> None:
        check_drop_rate(drop_rate)
        check_sizes("R2D2Net", n_way=n_way, in_channels=in_channels)
        if len(widths) != 4:
            raise ConfigurationError(f"R2D2Net has four blocks, got widths={widths!r}.")
        check_sizes("R2D2Net", **{f"widths[{i}]": width for i, width in enumerate(widths)})
        if type(image_size) is not int or image_size < 16:
            raise ConfigurationError(f"R2D2Net needs images of at least 16x16 pixels, got image_size={image_size!r}.")
        blocks = []
        for i, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            layers: list[nn.Module] = [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after, track_running_stats=False),  # the batch's own statistics, as in Conv4
                nn.MaxPool2d(2, stride=1 if i == 3 else 2),
                nn.LeakyReLU(0.1),
            ]
            blocks.append(nn.Sequential(*layers, *([nn.Dropout(drop_rate)] if drop_rate and i >= 2 else [])))
        body = nn.Sequential(*first_layers(normalize), _LastTwo(nn.Sequential(*blocks[:3]), blocks[3]))
        super().__init__(body, nn.Linear((widths[2] + widths[3]) * (image_size // 8 - 1) ** 2, n_way))
