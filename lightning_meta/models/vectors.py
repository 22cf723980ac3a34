"""Small networks on vectors of a pretrained model, which start as the identity."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError
from lightning_meta.models.body_and_head import BodyAndHead


class _Vectors(BodyAndHead):
    """A body that starts as a multiple of the identity, and a head that starts at zero."""

    def __init__(self, n_way: int, in_features: int, body: Callable[[], nn.Module], scale: float) -> None:
        for name, value in {"n_way": n_way, "in_features": in_features}.items():
            _check(type(self).__name__, name, value)
        if not scale > 0:
            raise ConfigurationError(f"{type(self).__name__} needs scale to be above 0, got {scale}.")
        own = body()
        head = nn.Linear(in_features, n_way)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        super().__init__(own, head)
        self.in_features = in_features


class _Scaled(nn.Module):
    def __init__(self, owner: str, in_features: int, scale: float) -> None:
        super().__init__()
        self.owner, self.in_features, self.scale = owner, in_features, scale

    def scaled(self, inputs: Any) -> Tensor:
        if not isinstance(inputs, Tensor):
            raise ConfigurationError(
                f"{self.owner} takes vectors, got a {type(inputs).__name__}. A TextDataModule gives vectors with "
                "representation='embeddings', and ids, for a TextClassifier, with 'tokens'."
            )
        if inputs.dim() != 2 or inputs.shape[1] != self.in_features:
            raise ConfigurationError(
                f"{self.owner} has in_features={self.in_features}, but an input is {tuple(inputs.shape[1:])}. Give "
                "in_features the length of the vectors."
            )
        scaled: Tensor = self.scale * inputs
        return scaled


class _Linear(_Scaled):
    def __init__(self, in_features: int, scale: float) -> None:
        super().__init__("Projection", in_features, scale)
        self.linear = nn.Linear(in_features, in_features)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.linear(self.scaled(inputs))
        return projected


class _Bottleneck(_Scaled):
    def __init__(self, in_features: int, hidden: int, scale: float) -> None:
        super().__init__("Adapter", in_features, scale)
        self.down, self.up = nn.Linear(in_features, hidden), nn.Linear(hidden, in_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        vectors = self.scaled(inputs)
        change: Tensor = self.up(torch.relu(self.down(vectors)))
        return vectors + change


class Projection(_Vectors):
    r"""A linear layer of vectors that starts as the identity, and a head that starts at zero: :math:`s W x + b`.

    So an untrained ProtoNet of it is the nearest centroid of the vectors; and one inner step of gradient descent from
    the head of zeros leads, with one shot of vectors of unit length, to the same predictions.

    Attributes:
        body: Vectors `(examples, in_features)` to vectors of the same length.
        head: Those to logits `(examples, n_way)`.

    Args:
        n_way: Number of classes of a task.
        in_features: Length of the vectors; 384 is that of MiniLM.
        scale: What vectors are multiplied by first: distances between vectors of unit length are so small that a
            softmax over them is almost uniform.

    Raises:
        ConfigurationError: A size is below 1, or `scale` is not positive; in use, vectors are of another length.

    Example:
        >>> vectors = torch.randn(2, 384)
        >>> bool((Projection(5).body(vectors) == vectors).all())
        True
    """

    def __init__(self, n_way: int, in_features: int = 384, scale: float = 1.0) -> None:
        super().__init__(n_way, in_features, lambda: _Linear(in_features, scale), scale)


class Adapter(_Vectors):
    r"""A bottleneck beside the identity that starts at zero, and a head that does: :math:`x + U\,\mathrm{relu}(D x)`.

    It has fewer parameters than `Projection`, and is not linear. Paper: Houlsby et al. 2019, arXiv:1902.00751.

    Attributes:
        body: Vectors `(examples, in_features)` to vectors of the same length.
        head: Those to logits `(examples, n_way)`.

    Args:
        n_way: Number of classes of a task.
        in_features: Length of the vectors; 384 is that of MiniLM.
        hidden: Width of the bottleneck.
        scale: What vectors are multiplied by first: see `Projection`.

    Raises:
        ConfigurationError: A size is below 1, or `scale` is not positive; in use, vectors are of another length.

    Example:
        >>> vectors = torch.randn(2, 384)
        >>> bool((Adapter(5).body(vectors) == vectors).all())
        True
    """

    def __init__(self, n_way: int, in_features: int = 384, hidden: int = 64, scale: float = 1.0) -> None:
        _check("Adapter", "hidden", hidden)
        super().__init__(n_way, in_features, lambda: _Bottleneck(in_features, hidden, scale), scale)


def _check(owner: str, name: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ConfigurationError(f"{owner} needs {name} to be a whole number of at least 1, got {value!r}.")
