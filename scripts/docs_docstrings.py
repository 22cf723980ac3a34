"""What a docstring is on the site: as at run time, with formulas, names and Sphinx's marks in Markdown."""

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import griffe

_BLOCK = re.compile(r"^( *)\.\. math::[ ]*(.*(?:\n(?:\1[ ]+\S.*|[ ]*(?=\n\1[ ]{4})))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]*)`")
_NAME = re.compile(r"(?<![`\[])`(\w+)`(?![`\]])")


def markdown(text: str) -> str:
    """Turn formulas as Sphinx writes them into those of the site.

    >>> print(markdown("Rate :math:`a_b`."))
    Rate `#!math a_b`.
    """

    def block(match: re.Match[str]) -> str:
        indent, source = match[1], " ".join(match[2].split())
        return f"{indent}```math\n{indent}{source}\n{indent}```"

    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)  # the one that is known as code
    return _INLINE.sub(lambda match: f"`#!math {' '.join(match[1].split())}`", _BLOCK.sub(block, text))


class Docstrings(griffe.Extension):
    """Takes docstrings from the classes at run time, where options that several share have been described."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Replace all of them, with links to the public names that they mention."""
        public = [(m, str(name)) for m in pkg.modules.values() for name in m.exports or ()]
        links = {name: f"{m.path}.{name}" for m, name in public if name not in m.modules}
        for obj in _objects(pkg):
            if obj.docstring is not None:
                found = _at_run_time(obj) if obj.is_class else None
                text = obj.docstring.value if found is None else inspect.cleandoc(found)
                obj.docstring.value = _linked(markdown(textwrap.dedent(text)), links)


def _at_run_time(obj: griffe.Object) -> str | None:
    try:
        found: str | None = getattr(importlib.import_module(obj.module.path), obj.name).__doc__
    except (ImportError, AttributeError):  # a class of an extra that is not installed, or within a function
        return None
    return found


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    for member in parent.members.values():
        if not member.is_alias:
            yield member
            yield from _objects(member)


def _linked(text: str, links: Mapping[str, str]) -> str:
    def link(match: re.Match[str]) -> str:
        return f"[{match[0]}][{links[match[1]]}]" if match[1] in links else match[0]

    return "\n".join(line if ">>>" in line else _NAME.sub(link, line) for line in text.split("\n"))
