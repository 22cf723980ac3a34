"""Errors for people: which are the package's own, written as one line, and which have to be put so."""

import os
import traceback
from pathlib import Path

import lightning
import torch

_PACKAGE, _TORCH, _LIGHTNING = (
    str(Path(str(module)).parent) + os.sep for module in (__file__, torch.__file__, lightning.__file__)
)
_KERNELS = os.path.join(_PACKAGE, "functional", "kernels", "")


class ConfigurationError(ValueError):
    """A configuration cannot be made into what it describes."""


class NetworkError(RuntimeError):
    """A network, its loss or its inner optimizer cannot work on the tasks that it is given."""


def is_own(error: BaseException) -> bool:
    """Whether an error was raised by this package, and not by what it called."""
    return _raised_in(error).startswith(_PACKAGE)


def is_torchs(error: BaseException) -> bool:
    """Whether an error was raised inside of torch."""
    return _raised_in(error).startswith(_TORCH)


def is_lightnings(error: BaseException) -> bool:
    """Whether an error was raised by Lightning."""
    return _raised_in(error).startswith(_LIGHTNING)


def _raised_in(error: BaseException) -> str:
    # Kernels raise nothing of their own: what goes wrong in them is what torch has to say of a network's layer.
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    others = [filename for filename in frames if not filename.startswith(_KERNELS)]
    return others[-1] if others else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """An error as the command line shows it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
