"""Texts as ids, and as vectors that are encoded once and kept in a file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from tqdm.auto import tqdm

from lightning_meta.errors import ConfigurationError, DataError, first_line
from lightning_meta.files import cache_folder, write_atomically
from lightning_meta.text.pretrained import Pretrained, extra

Pooling = Literal["mean", "cls"]
_FORMAT = 1
_SHOWN = 500
"""Fewer texts than these are encoded without a progress bar."""


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector for each text: the mean over its tokens, or the vector of the first.

    Args:
        hidden: Vectors of tokens, `(texts, tokens, features)`.
        mask: Which tokens there are, `(texts, tokens)`: 1, and 0 for padding.
        pooling: Which.

    Returns:
        `(texts, features)`.
    """
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def tokenized(pretrained: Pretrained, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
    """The ids of each text, cut to `max_length`, and how many texts were cut.

    Raises:
        ConfigurationError: The model takes no texts of that length.
    """
    tokenizer = pretrained.tokenizer
    if max_length > tokenizer.model_max_length:
        raise ConfigurationError(
            f"max_length={max_length}, but {pretrained.model} takes {tokenizer.model_max_length} tokens at most. "
            "Lower it."
        )
    options = {"truncation": True, "return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    ids: list[list[int]] = tokenizer(list(texts), max_length=max_length + 1, **options)["input_ids"]
    long = [i for i, each in enumerate(ids) if len(each) > max_length]
    if long:
        cut = tokenizer([texts[i] for i in long], max_length=max_length, **options)["input_ids"]
        for i, each in zip(long, cut, strict=True):
            ids[i] = each
    return ids, len(long)


def padded(ids: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Ids of texts of different lengths as tensors, padded to the longest.

    Returns:
        `input_ids` and `attention_mask`, `(texts, tokens)` each; the mask is 1, and 0 for padding.
    """
    longest = max(map(len, ids), default=0)
    found = torch.full((len(ids), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(found)
    for i, each in enumerate(ids):
        found[i, : len(each)] = torch.tensor(each, dtype=torch.long)
        mask[i, : len(each)] = 1
    return {"input_ids": found, "attention_mask": mask}


def encode(
    pretrained: Pretrained,
    texts: Sequence[str],
    pooling: Pooling = "mean",
    normalize: bool = True,
    max_length: int = 128,
    batch_size: int = 64,
) -> tuple[Tensor, int]:
    """The vector of each text, `(texts, features)`, and how many texts were cut; with a progress bar.

    Texts are encoded in the order of their lengths, so that little is padded.
    """
    ids, cut = tokenized(pretrained, texts, max_length)
    encoder, pad = pretrained.encoder, pretrained.tokenizer.pad_token_id
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    found: Tensor | None = None
    bar = tqdm(total=len(ids), desc="Encoding texts", unit=" texts", disable=len(ids) < _SHOWN)
    with torch.no_grad(), bar:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in padded([ids[i] for i in places], pad).items()}
            vectors = pooled(encoder(**batch).last_hidden_state, batch["attention_mask"], pooling)
            vectors = (F.normalize(vectors, dim=1) if normalize else vectors).float().cpu()
            if found is None:
                found = vectors.new_empty(len(ids), vectors.shape[1])
            found[places] = vectors
            bar.update(len(places))
    encoder.to("cpu")
    if found is None:
        raise ConfigurationError("There is no text to encode.")
    if not torch.isfinite(found).all():
        raise DataError(f"{pretrained.model} makes vectors that are not finite of some texts; its weights are broken.")
    return found, cut


def encoded_once(
    pretrained: Pretrained,
    texts: Sequence[str],
    pooling: Pooling = "mean",
    normalize: bool = True,
    max_length: int = 128,
    batch_size: int = 64,
    cache: Path | None = None,
) -> tuple[Tensor, int]:
    """The same, from a file where these texts have been encoded by this model in this way before.

    Args:
        pretrained: The model.
        texts: The texts.
        pooling: How a vector is made of those of tokens.
        normalize: Whether vectors have unit length.
        max_length: The most tokens of a text.
        batch_size: Texts that are encoded together.
        cache: The folder of such files; `lightning_meta` in the user's folder of caches if `None`.

    Returns:
        Vectors `(texts, features)`, and how many texts were cut.
    """
    safetensors = extra("safetensors")
    from safetensors.torch import load, save

    key = hashlib.blake2b(repr((_FORMAT, pretrained.digest, pooling, normalize, max_length)).encode(), digest_size=16)
    for text in texts:
        content = text.encode(errors="surrogatepass")
        key.update(len(content).to_bytes(8, "little") + content)
    path = (cache_folder() if cache is None else cache) / f"texts-{key.hexdigest()}.safetensors"
    if path.is_file():
        try:
            kept = load(path.read_bytes())
            if len(kept["vectors"]) == len(texts):
                return kept["vectors"], int(kept["cut"])
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            rank_zero_warn(f"{path} cannot be read ({first_line(error)}); the texts are encoded again.")
    vectors, cut = encode(pretrained, texts, pooling, normalize, max_length, batch_size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({"vectors": vectors, "cut": torch.tensor(cut)}))
    except OSError as error:
        raise DataError(
            f"The vectors of {len(texts)} texts, {vectors.nbytes / 2**20:.0f} MiB, cannot be written to {path.parent}: "
            f"{error.strerror or error}. Make room, or give another folder as cache."
        ) from error
    return vectors, cut
