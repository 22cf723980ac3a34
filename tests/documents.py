"""Reads the README and the pages beside it: their blocks of code, and the commands in them."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
_FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]*) -->\n+)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block of code.

    A comment right above it may say `continues` (it has the names of the block before), `not run: <reason>`, or
    `needs <library>` (it is run where that is installed).
    """

    page: str
    language: str
    code: str
    mark: str


def blocks(page, language):
    """The blocks of a language in a page, in order."""
    for found in _FENCE.finditer(PAGES[page]):
        if found["language"] == language:
            yield Block(page, language, textwrap.dedent(found["code"]), found["mark"] or "")


def programs(page):
    """The Python blocks of a page, each together with those that continue it."""
    together = []
    for block in blocks(page, "python"):
        if block.mark == "continues":
            together[-1] = together[-1]._replace(code=f"{together[-1].code}\n{block.code}")
        else:
            together.append(block)
    return together


def commands(page):
    """The commands of a page's bash blocks as lists of words, with its variables put in."""
    variables = {}
    for block in blocks(page, "bash"):
        if block.mark.startswith("not run: "):
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                command = re.sub(r"\$(\w+)", lambda match: variables[match[1]], command)
                words = shlex.split(command, comments=True)
                if len(words) == 1 and re.match(r"\w+=", words[0]):
                    name, _, value = words[0].partition("=")
                    variables[name] = value
                elif words:
                    yield words


def files(page):
    """YAML files that a page shows: blocks that begin with a comment of their name."""
    for block in blocks(page, "yaml"):
        name = re.match(r"# ([\w/]+\.yaml)\n", block.code)
        if name:
            yield name[1], block.code
