"""The four-layer convolutional network of the few-shot literature."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.models.body_and_head import BodyAndHead
from lightning_meta.models.normalize import Normalize, first_layers

Norm = Literal["batch", "instance", "group", "layer", "none"]

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    # The statistics are the batch's own, as in MAML: there is nothing to track.
    "batch": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(min(8, channels), channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}


class Conv4(BodyAndHead):
    """Four blocks of 3x3 convolution, normalization and ReLU, and a linear head.

    With `downsample="stride"` the convolutions have stride 2 and the head sees the mean over positions: MAML's network
    for Omniglot. With `"pool"` every block has 2x2 max-pooling and the head sees all positions: its network for
    mini-ImageNet (32 filters there). Paper: Vinyals et al. 2016, arXiv:1606.04080; Finn et al. 2017, arXiv:1703.03400.

    Attributes:
        body: Images `(examples, in_channels, H, W)` to features `(examples, features)`.
        head: Features to `(examples, n_way)` logits.

    Args:
        n_way: Number of classes of a task.
        hidden: Filters in every block.
        in_channels: Channels of the images.
        downsample: How a block halves the resolution.
        norm: `"layer"` normalizes over channels and positions together; `"group"` has groups of up to 8.
        image_size: Height and width of the images; it matters for `"pool"` only.
        normalize: What to do first to images in [0, 1]: see `Normalize`.

    Raises:
        ConfigurationError: `n_way`, `hidden`, `in_channels`, `downsample`, `norm` or `image_size` is not a possible
            value.

    Example:
        >>> import torch
        >>> Conv4(n_way=5)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        n_way: int,
        hidden: int = 64,
        in_channels: int = 1,
        downsample: Literal["stride", "pool"] = "stride",
        norm: Norm = "batch",
        image_size: int = 28,
        normalize: Normalize | None = None,
    ) -> None:
        counts = {"n_way": n_way, "hidden": hidden, "in_channels": in_channels, "image_size": image_size}
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"Conv4 needs {name} to be a whole number of at least 1, got {value!r}.")
        if downsample not in ("stride", "pool"):
            raise ConfigurationError(f"downsample must be 'stride' or 'pool', got {downsample!r}.")
        if norm not in _NORMS:
            raise ConfigurationError(f"norm must be one of {', '.join(map(repr, _NORMS))}, got {norm!r}.")
        if norm == "group" and hidden % min(8, hidden):
            raise ConfigurationError(f"norm='group' needs hidden to be a multiple of 8, got {hidden}.")
        if downsample == "pool" and image_size < 16:
            raise ConfigurationError(
                f"Four poolings need images of at least 16x16 pixels, got image_size={image_size}."
            )
        pool = downsample == "pool"
        blocks = []
        for channels in (in_channels, hidden, hidden, hidden):
            layers = [nn.Conv2d(channels, hidden, 3, stride=1 if pool else 2, padding=1), _NORMS[norm](hidden)]
            # The greatest of four is the same before ReLU as after it, and ReLU then has a quarter of the work.
            blocks.append(nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []), nn.ReLU()))
        summary = nn.Identity() if pool else nn.AdaptiveAvgPool2d(1)
        body = nn.Sequential(*first_layers(normalize), *blocks, summary, nn.Flatten())
        super().__init__(body, nn.Linear(hidden * (image_size // 16) ** 2 if pool else hidden, n_way))
