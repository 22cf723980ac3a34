"""Options that several modules have are described in one place."""

import inspect
import re

_ENTRY = re.compile(r"^    (\w+): ")


def complete_arguments(cls: type, *sources: type) -> None:
    """Add to the `Args:` of a class's docstring the options that it does not describe, from those of other classes.

    Args:
        cls: The class, with a constructor of its own.
        sources: Classes whose docstrings describe the rest; the first that has an option is taken.
    """
    own = cls.__doc__
    if own is None or "Args:" not in own:  # without docstrings, under `python -OO`
        return
    lines = inspect.cleandoc(own).splitlines()
    start = lines.index("Args:")
    end = next((i for i in range(start + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    while not lines[end - 1].strip():
        end -= 1
    described = _entries("\n".join(lines[start:end]))
    for name in list(inspect.signature(cls).parameters):
        found = next((entries[name] for entries in map(_entries_of, sources) if name in entries), None)
        if name not in described and found is not None:
            lines[end:end] = found
            end += len(found)
    cls.__doc__ = "\n".join(lines)


def _entries_of(cls: type) -> dict[str, list[str]]:
    return _entries(inspect.cleandoc(cls.__doc__ or ""))


def _entries(text: str) -> dict[str, list[str]]:
    """The lines of each entry of an `Args:` section."""
    entries: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.partition("Args:")[2].splitlines():
        match = _ENTRY.match(line)
        if match:
            current = entries.setdefault(match[1], [])
        elif line and not line.startswith("        "):
            current = None
        if current is not None and line.strip():
            current.append(line)
    return entries
