"""The command `new`: a small project that works, to begin with."""

import argparse
from importlib.resources import files
from pathlib import Path

from lightning_meta.errors import ConfigurationError, DataError

_TEMPLATE = "template"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("folder", metavar="DIR", help="A folder, which is made; if it is there, it must be empty.")


def run(options: argparse.Namespace) -> None:
    """Write the project.

    Raises:
        ConfigurationError: The folder is there and not empty.
        DataError: It cannot be written.
    """
    folder = Path(options.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is not empty. Give a new folder.")
    source = files("lightning_meta.cli") / _TEMPLATE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            if file.is_file():
                name = file.name.removesuffix(".template")
                (folder / name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}.") from error
    print(f"{folder} holds a project. Next: cd {folder}, python -m pytest, and what its README.md says.")
