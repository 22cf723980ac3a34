"""Pretrained encoders of texts as networks whose meta-gradient can be computed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from lightning_meta.models.body_and_head import BodyAndHead
from lightning_meta.text.embeddings import Pooling, pooled
from lightning_meta.text.pretrained import DEFAULT_MODEL, load_encoder, model_folder

Attention = Literal["sdpa", "eager"]


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention: 0 for tokens, and the lowest number of the type for padding.

    `torch.vmap` can run it, where it cannot run a mask `(texts, tokens)`: that one is looked at by its values.

    Args:
        mask: 1 for tokens and 0 for padding, `(texts, tokens)`.
        dtype: The type of the attention.

    Returns:
        `(texts, 1, 1, tokens)`.

    Example:
        >>> additive_mask(torch.tensor([[1, 0]]), torch.float16)
        tensor([[[[     0., -65504.]]]], dtype=torch.float16)
    """
    padding = torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)
    return padding[:, None, None, :]


class TextEncoder(nn.Module):
    """A pretrained encoder of the `transformers` library: ids of texts to one vector for each.

    It has no dropout, in training either, so that inner steps, adaptation and evaluation see one network. Attention has
    a kernel with second derivatives where something is differentiated.

    Attributes:
        model: The encoder, without a pooler.

    Args:
        model: A folder, an installed package that carries a model, a name on the Hugging Face hub, or a model itself,
            such as one of `AutoModel`.
        trainable_layers: How many of the last layers are trained; the others, and the embeddings, are frozen. All if
            `None`.
        pooling: How a text's vector is made of those of its tokens: their `mean`, or that of the first (`cls`).
        normalize: Whether vectors have unit length.
        attention: The kernel of attention, if it is not to be the model's own choice: `sdpa` or `eager`.

    Raises:
        ArgumentTypeError: In use, inputs are no dict of `input_ids` and `attention_mask`.
        ConfigurationError: A value does not make sense, or the model has fewer layers.
        DataError: The model cannot be loaded.
        MissingFileError: There is no such model.
    """

    def __init__(
        self,
        model: str | nn.Module = DEFAULT_MODEL,
        trainable_layers: int | None = None,
        pooling: Pooling = "mean",
        normalize: bool = False,
        attention: Attention | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ConfigurationError(f"pooling must be 'mean' or 'cls', got {pooling!r}.")
        if isinstance(model, nn.Module):
            if attention is not None:
                raise ConfigurationError(
                    f"attention={attention!r} is for a model that is loaded here: give it to from_pretrained, as "
                    "attn_implementation."
                )
            self.model = model
            if getattr(model, "pooler", None) is not None:
                self.model.pooler = None  # type: ignore[assignment]
        else:
            self.model = load_encoder(Path(model_folder(model)), attention)
        self.pooling: Pooling = pooling
        self.normalize = normalize
        self.features = int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        """The length of the vectors."""
        if trainable_layers is not None:
            self._freeze(trainable_layers)
        self.model.eval()

    def _freeze(self, trainable: int) -> None:
        """Leave the last layers to be trained, and freeze all else."""
        lists = [list(module) for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        layers = max(lists, key=lambda each: len(each), default=[])
        if type(trainable) is not int or not 0 <= trainable <= len(layers):
            raise ConfigurationError(
                f"trainable_layers={trainable!r}: {type(self.model).__name__} has {len(layers)} layers. Give a number "
                f"from 0 to {len(layers)}."
            )
        self.model.requires_grad_(False)
        for layer in layers[len(layers) - trainable :]:
            layer.requires_grad_()

    def train(self, mode: bool = True) -> "TextEncoder":
        """Stay without dropout."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Vectors `(texts, features)`.

        Args:
            inputs: `input_ids` and `attention_mask` (1, and 0 for padding), `(texts, tokens)` each.
        """
        if not isinstance(inputs, Mapping) or not {"input_ids", "attention_mask"} <= inputs.keys():
            found = f"a dict of {', '.join(inputs)}" if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
            raise ArgumentTypeError(
                f"TextEncoder takes a dict of input_ids and attention_mask, got {found}. A TextDataModule gives such "
                "inputs with representation='tokens'."
            )
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        # The kernels for speed have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            hidden = self.model(input_ids=ids, attention_mask=additive_mask(mask, dtype)).last_hidden_state
        vectors = pooled(hidden, mask, self.pooling)
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def extra_repr(self) -> str:
        """What is made of the model's vectors."""
        return f"pooling={self.pooling!r}, normalize={self.normalize}"


class TextClassifier(BodyAndHead):
    """A pretrained encoder of texts as `body`, and a linear `head` that starts at zero.

    Attributes:
        body: A `TextEncoder`: ids of texts to vectors `(texts, features)`.
        head: Vectors to logits `(texts, n_way)`.

    Args:
        n_way: Number of classes of a task.
        model: A folder, an installed package that carries a model, a name on the Hugging Face hub, or a model itself.
        trainable_layers: How many of the last layers are trained; the others, and the embeddings, are frozen. All if
            `None`.
        pooling: How a text's vector is made of those of its tokens: their `mean`, or that of the first (`cls`).
        normalize: Whether vectors have unit length.
        scale: What vectors are multiplied by: see `Projection`.
        attention: The kernel of attention, if it is not to be the model's own choice: `sdpa` or `eager`.

    Raises:
        ConfigurationError: A value does not make sense, or the model has fewer layers.
        DataError: The model cannot be loaded.
        MissingFileError: There is no such model.
    """

    def __init__(
        self,
        n_way: int,
        model: str | nn.Module = DEFAULT_MODEL,
        trainable_layers: int | None = 1,
        pooling: Pooling = "mean",
        normalize: bool = True,
        scale: float = 1.0,
        attention: Attention | None = None,
    ) -> None:
        if type(n_way) is not int or n_way < 1:
            raise ConfigurationError(f"TextClassifier needs n_way to be a whole number of at least 1, got {n_way!r}.")
        if not scale > 0:
            raise ConfigurationError(f"TextClassifier needs scale to be above 0, got {scale}.")
        encoder = TextEncoder(model, trainable_layers, pooling, normalize, attention)
        body = nn.Sequential(encoder, _Scale(scale)) if scale != 1 else encoder
        head = nn.Linear(encoder.features, n_way)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        super().__init__(body, head)


class _Scale(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, vectors: Tensor) -> Any:
        return self.scale * vectors
