"""Adapted networks as files that other programs run, by `torch.export` or as ONNX."""

import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_meta.errors import ConfigurationError, DataError, MissingFileError, NetworkError, first_line
from lightning_meta.files import write_atomically
from lightning_meta.task import map_tensors, tensors_of

__all__ = ["Exported", "export_network", "load_exported"]

_ABOUT = "lightning_meta.json"


class Exported(NamedTuple):
    """A network read from a file.

    Attributes:
        network: Called as the network that was exported.
        classes: The name of each of its outputs, if they have names.
        about: What else was kept with it.
    """

    network: nn.Module
    classes: list[str] | None
    about: dict[str, Any]


def export_network(
    network: nn.Module,
    path: str | Path,
    inputs: Any,
    classes: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapted network, which `MetaModule.adapt_to` returns, as a file, for any number of examples at once.

    Args:
        network: Called as `network(inputs)`.
        path: `*.pt2` is written by `torch.export` and read by `load_exported`, or by `torch.export.load` without this
            package; `*.onnx` is for onnxruntime and others, and needs the extra `onnx`.
        inputs: Some examples as the network takes them: a tensor `(examples, ...)`, or a nesting of such tensors.
        classes: The name of each output, kept in the file.
        about: What else to keep there, in plain types.

    Raises:
        ConfigurationError: The file has another ending, or there are no examples.
        NetworkError: The network does something that cannot be exported; the message is torch's.
        DataError: The file cannot be written.
        ImportError: ONNX's libraries are missing.
    """
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ConfigurationError(f"{path} must end in .pt2 (torch.export) or .onnx.")
    if not tensors_of(inputs) or not all(len(tensor) for tensor in tensors_of(inputs)):
        raise ConfigurationError("Exporting a network needs at least one example of its inputs.")
    # A single example would be taken for the only number of examples that there can be.
    inputs = map_tensors(lambda t: t.detach().repeat(2, *[1] * (t.dim() - 1)), inputs)
    batch = torch.export.Dim("examples")
    shapes = (apply_to_collection(inputs, Tensor, lambda _: {0: batch}),)
    kept = json.dumps({**(about or {}), "classes": None if classes is None else [str(name) for name in classes]})
    modes = {layer: layer.training for layer in network.modules()}
    try:
        content = (_onnx if path.suffix == ".onnx" else _pt2)(network.eval(), inputs, shapes, kept)
    finally:
        for layer, mode in modes.items():
            layer.training = mode
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error


def _pt2(network: nn.Module, inputs: Any, shapes: Any, kept: str) -> bytes:
    try:
        program = torch.export.export(network, (inputs,), dynamic_shapes=shapes)
    except Exception as error:
        raise NetworkError(f"torch.export cannot export {type(network).__name__}: {first_line(error)}.") from error
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_ABOUT: kept})
    return buffer.getvalue()


def _onnx(network: nn.Module, inputs: Any, shapes: Any, kept: str) -> bytes:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX files need {' and '.join(missing)}: pip install 'lightning-meta[onnx]'.")
    try:
        program: Any = torch.onnx.export(
            network,
            (inputs, {}),
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,  # else a dict is taken for options
        )
    except Exception as error:
        raise NetworkError(f"torch.onnx cannot export {type(network).__name__}: {first_line(error)}.") from error
    program.model.metadata_props[_ABOUT] = kept
    content: bytes = program.model_proto.SerializeToString()
    return content


def load_exported(path: str | Path) -> Exported:
    """Read what `export_network` wrote as `*.pt2`.

    Raises:
        MissingFileError: There is no such file.
        DataError: It is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}.")
    files = {_ABOUT: ""}
    try:
        program = torch.export.load(path, extra_files=files)
        about = json.loads(files[_ABOUT] or "{}")
    except Exception as error:
        raise DataError(f"{path} is no network that was exported as .pt2 ({first_line(error)}).") from error
    return Exported(program.module(), about.pop("classes", None), about)
