"""Files that are written whole or not at all, and kept."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lightning_meta.errors import DataError


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Put a file with this content where `path` is, in one move and for good.

    Whenever the process dies, `path` is the old file or the new one, complete.

    Args:
        path: The file, in a folder that exists.
        content: What it is to hold.

    Raises:
        OSError: It cannot be written; what was there stays as it was.
    """
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False)  # noqa: SIM115
    try:
        with file:
            os.chmod(file.name, 0o666 & ~_umask())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException:
        os.unlink(file.name)
        raise


@contextmanager
def new_array(target: Path, shape: Sequence[int], dtype: Any, what: str) -> Iterator[np.ndarray[Any, Any]]:
    """A memory map to fill, that is put into place afterwards: whole or not at all.

    Args:
        target: The `.npy` file; its folder is made.
        shape: Of the array.
        dtype: Of the array.
        what: What to call the array in errors.

    Raises:
        DataError: There is no room for it, or it cannot be written.
    """
    temporary = None
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".npy")
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would end the process later
            os.posix_fallocate(handle, 0, 128 + size)
        os.close(handle)
        array = np.lib.format.open_memmap(temporary, "w+", dtype, tuple(shape))
        yield array
        array.flush()
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(
            f"{what}, {size / 2**20:.0f} MiB, cannot be written to {target.parent}: {error.strerror or error}. Make "
            "room, or give another folder as cache."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def cache_folder() -> Path:
    """Where what can be computed again is kept if no other folder is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_meta"


def keep(path: Path) -> Path:
    """Rename a file so that another can be written in its place: the first is `name.1.suffix`; returns the new path."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return path.rename(kept)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
