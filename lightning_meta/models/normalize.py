"""Normalization of images as a layer of the network, so that what is deployed cannot forget it."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError


class Normalize(nn.Module):
    r"""Subtracts a mean from each channel and divides by a deviation: :math:`(x - \mu) / \sigma`.

    As the first layer of a network it is saved, adapted and exported with it, and data stays images in [0, 1] that can
    be drawn. The networks of this package take one as `normalize`.

    Args:
        mean: What to subtract, for each channel; one number is for all channels.
        std: What to divide by, for each channel.

    Raises:
        ConfigurationError: A deviation is not positive, or there are other numbers of means than of deviations. In use,
            the images have other channels.

    Example:
        >>> layer = Normalize([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
        >>> layer(torch.ones(2, 3, 8, 8)).unique()
        tensor([2.])
        >>> layer.undo(layer(torch.ones(2, 3, 8, 8))).unique()
        tensor([1.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ConfigurationError(f"Normalize needs a std for each mean, got mean={mean!r} and std={std!r}.")
        if any(not value > 0 for value in std):
            raise ConfigurationError(f"Normalize divides by std, which must be positive, got {std!r}.")
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor([float(value) for value in values]).view(-1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Images `(examples, C, H, W)`, normalized."""
        self._check(inputs)
        return (inputs - self.mean) / self.std

    def undo(self, inputs: Tensor) -> Tensor:
        """The images `(examples, C, H, W)` that were normalized."""
        self._check(inputs)
        return inputs * self.std + self.mean

    def _check(self, inputs: Tensor) -> None:
        count = len(self.mean)
        if inputs.dim() < 3 or count not in (1, inputs.shape[-3]):
            raise ConfigurationError(
                f"Normalize is for images (examples, {count}, H, W), got inputs {tuple(inputs.shape)}. Give mean and "
                "std a number for each channel."
            )

    def extra_repr(self) -> str:
        """The numbers."""
        mean, std = (cast(list[float], values.flatten().tolist()) for values in (self.mean, self.std))
        return f"mean={[round(v, 4) for v in mean]}, std={[round(v, 4) for v in std]}"


def first_layers(normalize: nn.Module | None) -> list[nn.Module]:
    """What a body begins with: the normalization, if there is one.

    Raises:
        ConfigurationError: It is not a layer.
    """
    if normalize is not None and not isinstance(normalize, nn.Module):
        raise ConfigurationError(f"normalize must be a layer such as Normalize([0.5], [0.5]), got {normalize!r}.")
    return [] if normalize is None else [normalize]
