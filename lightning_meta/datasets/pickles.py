"""Pickles of arrays, read without running what is in them."""

import codecs
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lightning_meta.errors import DataError, MissingFileError, first_line

_MULTIARRAY: Any = import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
_BUILTINS = {kind.__name__: kind for kind in (bytearray, complex, frozenset, set)}


class _ArraysOnly(pickle.Unpickler):
    """Knows plain values and arrays of NumPy; whatever else a pickle asks for is refused before anything is called."""

    def find_class(self, module: str, name: str) -> Any:
        """The few functions of which a pickled array is made."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(_MULTIARRAY, name)
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _from_buffer
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise DataError(
            f"it asks for {module}.{name}, which is no array. Only plain values and NumPy arrays are read, since "
            "anything else may run a program"
        )


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if codecs.lookup(encoding).name != "iso8859-1":
        raise DataError(f"it encodes bytes as {encoding}")
    return text.encode("latin1")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str) -> Any:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def read_arrays(path: Path) -> Any:
    """What a pickle of plain values and NumPy arrays holds; of Python 2, too, with text as `str`.

    Raises:
        MissingFileError: There is no such file.
        DataError: It is none, or asks for anything else.

    Example:
        >>> import os, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "images.pkl").write_bytes(pickle.dumps({"data": np.arange(3)}))
        >>> read_arrays(folder / "images.pkl")["data"].tolist()
        [0, 1, 2]
        >>> class Evil:
        ...     def __reduce__(self):
        ...         return os.system, ("true",)
        >>> _ = (folder / "evil.pkl").write_bytes(pickle.dumps(Evil()))
        >>> read_arrays(folder / "evil.pkl")
        Traceback (most recent call last):
        ...
        lightning_meta.errors.DataError: ... asks for posix.system, which is no array...
    """
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}.")
    with path.open("rb") as file:
        try:
            return _ArraysOnly(file, encoding="latin1").load()
        except Exception as error:  # whatever a broken pickle raises
            raise DataError(f"{path} cannot be read as a pickle: {first_line(error)}.") from error
