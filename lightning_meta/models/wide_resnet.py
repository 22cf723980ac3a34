"""Wide residual networks."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.models.body_and_head import BodyAndHead
from lightning_meta.models.normalize import Normalize, first_layers
from lightning_meta.models.resnet12 import check_drop_rate, check_sizes, initialize


class _Block(nn.Module):
    """Two convolutions, each after its normalization, beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.BatchNorm2d(c, track_running_stats=False) for c in (before, after))
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = before == after and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        around = x if self.shortcut is None else self.shortcut(active)
        inner = self.conv2(self.drop(F.relu(self.norm2(self.conv1(active)))))
        summed: Tensor = around + inner
        return summed


class WRN28_10(BodyAndHead):
    """The wide residual network of 28 layers, ten times as wide as a ResNet for CIFAR: 36.5 million parameters.

    Three groups of four blocks, of which the second and the third halve the resolution, and a linear head on the mean.
    Paper: Zagoruyko, Komodakis 2016, arXiv:1605.07146.

    Attributes:
        body: Images `(examples, in_channels, H, W)` to features `(examples, 64 * width)`.
        head: Features to `(examples, n_way)` logits.

    Args:
        n_way: Number of classes of a task.
        in_channels: Channels of the images.
        depth: Layers: 6 for each block of a group, and 4 more.
        width: How many times as wide as a ResNet with 16, 32 and 64 channels.
        drop_rate: Which part is dropped between a block's convolutions in training. Tasks that run together draw others
            than one after another.
        normalize: What to do first to images in [0, 1]: see `Normalize`.

    Raises:
        ConfigurationError: A number is out of its range.

    Example:
        >>> import torch
        >>> WRN28_10(n_way=5, depth=10, width=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        n_way: int,
        in_channels: int = 3,
        depth: int = 28,
        width: int = 10,
        drop_rate: float = 0.0,
        normalize: Normalize | None = None,
    ) -> None:
        check_sizes("WRN28_10", n_way=n_way, in_channels=in_channels, depth=depth, width=width)
        check_drop_rate(drop_rate)
        if depth < 10 or (depth - 4) % 6:
            raise ConfigurationError(f"depth must be 10, 16, 22, 28, ..., 6 for each block and 4 more; got {depth}.")
        before, blocks = 16, []
        for group, channels in enumerate((16 * width, 32 * width, 64 * width)):
            for place in range((depth - 4) // 6):
                stride = 2 if group and not place else 1
                blocks.append(_Block(before, channels, stride, drop_rate))
                before = channels
        body = nn.Sequential(
            *first_layers(normalize),
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            *blocks,
            nn.BatchNorm2d(before, track_running_stats=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        super().__init__(body, nn.Linear(before, n_way))
        initialize(self.body, 0.0)
