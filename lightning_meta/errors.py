"""Errors for people: one base class for those of this package, each also the built-in error that it is a kind of."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = [
    "ArgumentTypeError",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "LightningMetaError",
    "MissingFileError",
    "NetworkError",
    "NotFiniteError",
]


class LightningMetaError(Exception):
    """Base of all errors that this package raises: the command line shows one as a line, without a traceback."""


class ConfigurationError(LightningMetaError, ValueError):
    """A value does not make sense, or values do not fit each other."""


class ArgumentTypeError(LightningMetaError, TypeError):
    """A value is of another kind than what is needed."""


class NetworkError(LightningMetaError, RuntimeError):
    """A network, its loss or its inner optimizer cannot work on the tasks that it is given."""


class DataError(LightningMetaError, RuntimeError):
    """Tasks cannot be made from the data."""


class MissingFileError(LightningMetaError, FileNotFoundError):
    """A file that was asked for is not there."""


class CheckpointError(LightningMetaError, RuntimeError):
    """A checkpoint could not be written, cannot be read, or does not fit the module."""


class NotFiniteError(LightningMetaError, FloatingPointError):
    """A loss or a gradient is infinite or not a number."""


def comes_from(error: BaseException, package: str) -> bool:
    """Whether an error, of a class that may be anybody's, was raised in a module of `package`."""
    frames: list[FrameType] = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    name = str(frames[-1].f_globals.get("__name__", "")) if frames else ""
    return name == package or name.startswith(f"{package}.")


@contextmanager
def derivatives_explained() -> Iterator[None]:
    """Turn torch's error about an operator that has no second derivative into one that says what to do.

    Raises:
        NetworkError: There was such an error.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        missing = re.search(r"derivative for '?([\w:]+)'? is not implemented", str(error))
        if missing is None and "double backward" not in str(error) and "twice" not in first_line(error):
            raise
        operator = f"torch's operator {missing[1]}" if missing else f"an operator ({first_line(error)})"
        raise NetworkError(
            f"{operator}, which the network or its loss uses, has no second derivative. first_order=True needs none; "
            "or write the layer in other operators."
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """An error as the command line shows it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
