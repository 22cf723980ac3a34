"""Labelled texts from files: CSV, TSV and JSON lines, also compressed."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from lightning_meta.errors import ArgumentTypeError, ConfigurationError, DataError, MissingFileError

FORMATS = (".csv", ".tsv", ".jsonl")


class Texts(NamedTuple):
    """Labelled texts.

    Attributes:
        texts: The texts.
        labels: The name of each text's class.
        groups: The group of each, such as a domain, where a column of them was asked for.
    """

    texts: list[str]
    labels: list[str]
    groups: list[str] | None = None


class _Row(NamedTuple):
    """A row of a table, by column, and where it stands."""

    where: str
    cells: dict[str, Any]


def read_texts(
    source: str | Path | Sequence[Any] | Any, text: str = "text", label: str = "label", group: str | None = None
) -> Texts:
    """Read labelled texts.

    Args:
        source: A file `.csv`, `.tsv` or `.jsonl` in UTF-8, each also as `.gz`; a `Dataset` of Hugging Face; or a list
            of pairs (text, label), or of triples (text, label, group).
        text: The column of the texts.
        label: The column of the classes.
        group: The column of groups of classes, such as domains, if it is wanted.

    Returns:
        The texts that are not empty; how many are is said.

    Raises:
        MissingFileError: There is no such file.
        ConfigurationError: It is of another format, or has no such column.
        DataError: It cannot be read, or a text or a label is missing; the message names file, line and column.
        ArgumentTypeError: `source` is something else.

    Example:
        >>> read_texts([("where is my card", "card"), ("top me up", "top up")]).labels
        ['card', 'top up']
    """
    if isinstance(source, str | Path):
        name, rows = str(source), _file_rows(Path(source).expanduser())
    elif hasattr(source, "column_names") and hasattr(source, "features"):
        name, rows = "the data set", _dataset_rows(source)
    elif isinstance(source, Sequence):
        name, rows = "the list", _list_rows(source, text, label, group)
    else:
        raise ArgumentTypeError(
            f"Texts are read from a file, a Hugging Face Dataset, or a list of pairs (text, label), not from "
            f"{type(source).__name__}. Of a DatasetDict give one split, such as data['train']."
        )
    found = Texts([], [], None if group is None else [])
    empty, columns = 0, [text, label] if group is None else [text, label, group]
    for row in rows:
        for column in columns:
            if column not in row.cells:
                raise ConfigurationError(_no_column(row, column, {text: "text", label: "label"}))
        content = row.cells[text]
        if content is not None and not isinstance(content, str):
            raise DataError(f"{row.where}, column {text!r}: a text must be a string, got {content!r}.")
        if content is None or not content.strip():
            empty += 1
            continue
        found.texts.append(content)
        found.labels.append(_name(row, label))
        if found.groups is not None:
            found.groups.append(_name(row, str(group)))
    if not found.texts:
        raise DataError(f"{name} has no texts{f': all {empty} are empty' if empty else ''}.")
    if empty:
        rank_zero_info(f"{name}: {empty} of {empty + len(found.texts)} texts are empty and are left out.")
    return found


def _name(row: _Row, column: str) -> str:
    """The name of a class or a group, a string or a number in the table."""
    value = row.cells[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise DataError(
            f"{row.where}, column {column!r}: there must be the name or the number of a class, got {value!r}. "
            "Fill it in, or leave the row out."
        )
    return str(value).strip()


def _no_column(row: _Row, column: str, arguments: dict[str, str]) -> str:
    near = get_close_matches(column, row.cells, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"{row.where}: there is no column {column!r}; there are {', '.join(map(repr, row.cells))}.{hint} Name the "
        f"column: {arguments.get(column, 'group')}=..."
    )


def _file_rows(path: Path) -> Iterator[_Row]:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in FORMATS:
        raise ConfigurationError(
            f"{path}: the name of a file of texts ends in {', '.join(FORMATS)}, each also with .gz. Rename it, or read "
            "it yourself and give a list of pairs (text, label)."
        )
    content = io.StringIO(_decoded(path), newline="")
    yield from _json_rows(path, content) if suffix.lower() == ".jsonl" else _table_rows(path, content, suffix.lower())


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        folder = f"The folder {path.parent} is there" if path.parent.is_dir() else f"There is no folder {path.parent}"
        raise MissingFileError(f"There is no file {path}. {folder}; give the path of your texts.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: it is not in UTF-8. Save the file in UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}. Pack it again with gzip.") from error


def _table_rows(path: Path, content: io.StringIO, suffix: str) -> Iterator[_Row]:
    delimiter = "\t" if suffix == ".tsv" else ","
    reader = csv.reader(content, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}, line {start}", reader.line_num + 1
            if not cells:  # an empty line
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise DataError(f"{where}: a column has the same name as another: {', '.join(header)}.")
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: there are {len(cells)} columns, but the header has {len(header)}. A text with "
                    f"{'a tab' if suffix == '.tsv' else 'a comma'} or a line break in it must stand in quotes."
                )
            yield _Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {start}: {error}. A text that begins with a quote must end with one, and a quote in it is "
            "written twice."
        ) from error


def _json_rows(path: Path, content: Iterable[str]) -> Iterator[_Row]:
    for number, line in enumerate(content, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: it is not JSON: {error.msg} at column {error.colno}.") from error
        if not isinstance(cells, dict):
            raise DataError(f"{path}, line {number}: it must be an object of columns and values, got {cells!r}.")
        yield _Row(f"{path}, line {number}", cells)


def _list_rows(source: Sequence[Any], *columns: str | None) -> Iterator[_Row]:
    names = [column for column in columns if column is not None]
    for i, row in enumerate(source):
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != len(names):
            kind = "pairs (text, label)" if len(names) == 2 else "triples (text, label, group)"
            raise ArgumentTypeError(f"A list of texts must hold {kind}, but entry {i} is {row!r}.")
        yield _Row(f"entry {i} of the list", dict(zip(names, row, strict=True)))


def _dataset_rows(source: Any) -> Iterator[_Row]:
    classes = {column: kind.names for column, kind in source.features.items() if getattr(kind, "names", None)}
    for i, row in enumerate(source):
        named = {column: names[row[column]] for column, names in classes.items() if type(row[column]) is int}
        yield _Row(f"row {i} of the data set", row | named)
