"""The parser of the command line: class names, and errors that end in a line for people."""

import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

import lightning_meta
from lightning_meta import models
from lightning_meta.cli.help import HelpFormatter
from lightning_meta.modules import MetaModule

_READ_ON = (
    "Options of a class: lightning-meta fit --model.help MAMLModule, --data.help GlyphsDataModule, "
    "--trainer.strategy.help DDPStrategy. Of a network: lightning-meta fit --model MAMLModule --model.network.help "
    "Conv4."
)
_LONGEST_VALUE = 80
_NOT_REASONS = (
    "Subtypes:",
    "Errors:",
    "Given value",
    "Does not validate",
    "Problem with",
    "NoneType'>",
    "Expected a path",
)


def qualified(value: Any) -> Any:
    """Give the package's networks their full class path: torchvision has an MLP, too."""
    if isinstance(value, dict):
        value = {key: qualified(inner) for key, inner in value.items()}
        if value.get("class_path") in models.__all__:
            value["class_path"] = f"lightning_meta.{value['class_path']}"
    elif isinstance(value, list):
        value = [qualified(inner) for inner in value]
    return value


class MetaParser(LightningArgumentParser):
    """Prints short helps, and says at the end of what it refuses which key, which value and what to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own: dict[str, Any] = {"prog": "lightning-meta", "formatter_class": HelpFormatter, "epilog": _READ_ON}
        super().__init__(*args, **own | kwargs)

    def add_class_arguments(
        self, class_type: type, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Add the arguments of a class; a network's number of classes may be left to the data."""
        added: list[str] = super().add_class_arguments(class_type, nested_key, *args, **kwargs)
        is_network = issubclass(class_type, nn.Module) and not issubclass(class_type, MetaModule)
        if is_network and "n_way" in added and nested_key is None:
            self.set_defaults(n_way=None)
            for action in self._actions:
                action.required = action.required and action.dest != "n_way"
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, the essence of it in the last line, and exit with the status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        if "\n" in message.strip():
            sys.stderr.write(f"{message.strip()}\n")
        known = [option for action in parser._actions for option in action.option_strings]
        near = nearest(message, known)
        hint = f"Did you mean {near}? " if near else ""
        sys.stderr.write(f"error: {essence(message)} {hint}See {parser.prog.replace(' [options]', '')} --help.\n")
        sys.exit(2)


def nearest(message: str, options: Iterable[str]) -> str | None:
    """The option or class that somebody may have misspelt, according to an error of the parser.

    Args:
        message: What the parser says.
        options: The parser's own, such as `--trainer.max_epochs`.

    Example:
        >>> nearest("Given class_path 'lightning_meta.MAMLModule': Option 'inner_stps' is not accepted", [])
        'inner_steps'
    """
    option = re.search(r"[Oo]ption '([^']+)' is not accepted", message)
    if option:
        paths = re.findall(r"class_path[ =]'([^']+)'", message)
        known = [name for path in paths for name in inspect.signature(resolve_name(path)).parameters]
        return _closest(option[1], known)
    unknown = re.search(r"[Uu]nrecognized arguments: (--[\w.]+)", message)
    if unknown:
        return _closest(unknown[1], options)
    key = re.search(r"does not accept option '([^']+)'", message)
    if key:
        found = _closest(f"--{key[1]}", options)
        return None if found is None else found.removeprefix("--")
    class_name = re.search(r"Expected a dot import path string: (\w+)", message)
    return _closest(class_name[1], lightning_meta.__all__) if class_name else None


def _closest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(word, list(known), 1)), None)


def essence(message: str) -> str:
    r"""The key, the value and the reasons in an error of the parser, in one line.

    Example:
        >>> essence("Parser key \"trainer.max_epochs\":\n  Expected a <class 'int'>\n  Given value: many")
        'trainer.max_epochs: many is not accepted: expected int.'
    """
    keys: list[str] = []
    deepest = -1
    for line in message.splitlines():
        indentation = len(line) - len(line.lstrip(" -"))
        for key in re.findall(r'Parser key "([^"]+)"', line):
            if indentation > deepest:  # of several alternatives the first
                keys.append(key)
        if "Parser key" in line:
            deepest = max(deepest, indentation)
    values = re.findall(r"(?:Given value|Got value): (.+)", message)
    value = values[0] if values else ""
    nested = re.findall(r"NestedArg\(key='([^']*)', val=(.*)\)\s*$", message)
    if nested:
        keys, value = [keys[0], nested[0][0]], nested[0][1].strip("'")
    value = value if len(value) <= _LONGEST_VALUE else value[:_LONGEST_VALUE] + "..."
    given = ".".join(keys) + (f": {value} is not accepted" if value else "")
    why = reasons(message)
    return f"{given}: {why[0].lower() + why[1:]}." if given else f"{why}."


def reasons(message: str) -> str:
    """The reasons that the parser, or a class that it made, gave for an error, in one line."""
    found: list[str] = []
    for line in message.splitlines():
        rest = re.sub(r"^.*Parser key \"[^\"]+\":|Got value: .*$|Given value: .*$", "", line).strip(" -.")
        if rest and not any(part in line for part in _NOT_REASONS) and rest not in found:
            found.append(rest)
    named = re.sub(r"; Expected ", " or ", "; ".join(found)) or message.strip()
    return re.sub(r"a <class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", named)
