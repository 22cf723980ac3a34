"""Files that are written whole or not at all, and kept."""

import os
import tempfile
from pathlib import Path


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
