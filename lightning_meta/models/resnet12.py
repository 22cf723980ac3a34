"""The residual network with twelve layers of the few-shot literature, and DropBlock."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.models.body_and_head import BodyAndHead
from lightning_meta.models.normalize import Normalize, first_layers


class DropBlock(nn.Module):
    r"""Drops square blocks of feature maps in training, each channel its own; the rest of an example is scaled up.

    Blocks are centred where they fit, with the probability

    .. math::
        \gamma = \frac{r}{s^2} \frac{H W}{(H - s + 1)(W - s + 1)}

    for a rate :math:`r` and a size :math:`s`, which is no larger than the map. Paper: Ghiasi, Lin, Le 2018,
    arXiv:1810.12890. An example is scaled by what is left of itself, so that it does not depend on others.

    It draws from torch's generator, as dropout does. In meta-training that is seeded by the outer step, so a run can be
    repeated and resumed; but tasks that run together draw other blocks than one after another. In evaluation mode it
    does nothing.

    Args:
        drop_rate: About which part to drop, below 1.
        block_size: Height and width of a block.

    Raises:
        ConfigurationError: The rate is not in [0, 1), or the size is below 1.

    Example:
        >>> dropped = DropBlock(0.2, 3)(torch.ones(64, 8, 10, 10))
        >>> bool((dropped == 0).float().mean() > 0.1), round(dropped.mean().item(), 3)
        (True, 1.0)
    """

    def __init__(self, drop_rate: float, block_size: int = 5) -> None:
        super().__init__()
        check_drop_rate(drop_rate)
        if type(block_size) is not int or block_size < 1:
            raise ConfigurationError(f"block_size must be a whole number of at least 1, got {block_size!r}.")
        self.drop_rate, self.block_size = drop_rate, block_size

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps `(examples, channels, H, W)`."""
        if not self.training or not self.drop_rate:
            return inputs
        height, width = inputs.shape[-2:]
        size = min(self.block_size, height, width)
        places = (height - size + 1) * (width - size + 1)
        gamma = min(1.0, self.drop_rate / size**2 * height * width / places)
        shape = (*inputs.shape[:-2], height - size + 1, width - size + 1)
        corners = (torch.rand(shape, device=inputs.device) < gamma).to(inputs.dtype)
        # Every place is dropped that lies in the block of some corner.
        dropped = F.max_pool2d(F.pad(corners, (size - 1,) * 4), size, stride=1)
        kept = 1 - dropped
        share = kept.mean((-3, -2, -1), keepdim=True)
        return inputs * kept / share.clamp(min=1 / kept[0].numel())

    def extra_repr(self) -> str:
        """The numbers."""
        return f"drop_rate={self.drop_rate}, block_size={self.block_size}"


def check_drop_rate(drop_rate: float) -> None:
    """Refuse a rate that is not in [0, 1).

    Raises:
        ConfigurationError: It is not.
    """
    if not isinstance(drop_rate, int | float) or not 0 <= drop_rate < 1:
        raise ConfigurationError(f"drop_rate must be at least 0 and below 1, got {drop_rate!r}.")


class _Block(nn.Module):
    """Three convolutions beside one of 1x1, and a pooling."""

    def __init__(self, before: int, after: int, drop: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (before, after, after):
            layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), _norm(after), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), _norm(after))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.layers(x) + self.shortcut(x), 0.1)
        dropped: Tensor = self.drop(F.max_pool2d(x, 2))
        return dropped


def _norm(channels: int) -> nn.Module:
    # The statistics are the batch's own, as in Conv4: there is nothing to track.
    return nn.BatchNorm2d(channels, track_running_stats=False)


class ResNet12(BodyAndHead):
    """Four residual blocks of three convolutions, each halving the resolution, and a linear head on the mean.

    The widths are those of Lee et al. 2019, arXiv:1904.03758 (MetaOptNet), who drop 10 % in meta-training: single
    features after the first blocks, blocks of them (`DropBlock`) after the last two. Here nothing is dropped by
    default: what is drawn differs between tasks run together and one after another, and each inner step draws anew
    (where the head alone adapts, all have the same).
    Give `drop_rate=0.1` for the algorithms that embed (ProtoNet, R2D2, MetaOptNet).

    Attributes:
        body: Images `(examples, in_channels, H, W)` to features `(examples, widths[-1])`.
        head: Features to `(examples, n_way)` logits.

    Args:
        n_way: Number of classes of a task.
        in_channels: Channels of the images.
        widths: Channels of each block.
        drop_rate: About which part is dropped after each block in training.
        block_size: Height and width of what `DropBlock` drops; 5 for images of 84 pixels, 2 for 32.
        normalize: What to do first to images in [0, 1]: see `Normalize`.

    Raises:
        ConfigurationError: A number is out of its range. In use, images are too small for the poolings.

    Example:
        >>> ResNet12(n_way=5, widths=[4, 4, 8, 8])(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        n_way: int,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 160, 320, 640),
        drop_rate: float = 0.0,
        block_size: int = 5,
        normalize: Normalize | None = None,
    ) -> None:
        check_drop_rate(drop_rate)
        check_sizes("ResNet12", n_way=n_way, in_channels=in_channels)
        check_sizes("ResNet12", **{f"widths[{i}]": width for i, width in enumerate([*widths] or [0])})
        blocks = []
        for i, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            last = i >= len(widths) - 2
            drop = DropBlock(drop_rate, block_size) if last else nn.Dropout(drop_rate)
            blocks.append(_Block(before, after, drop if drop_rate else nn.Identity()))
        body = nn.Sequential(*first_layers(normalize), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(body, nn.Linear(widths[-1], n_way))
        initialize(self.body, 0.1)


def check_sizes(network: str, **sizes: int) -> None:
    """Refuse sizes that are not whole numbers of at least 1.

    Raises:
        ConfigurationError: One is not.
    """
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ConfigurationError(f"{network} needs {name} to be a whole number of at least 1, got {value!r}.")


def initialize(body: nn.Module, slope: float) -> None:
    """Draw the convolutions' weights by the rule of He et al. 2015 (arXiv:1502.01852), of outgoing connections."""
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, slope, "fan_out", "leaky_relu")
