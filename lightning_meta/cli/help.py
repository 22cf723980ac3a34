"""How the command line shows its options: one entry each, with a short type, a sentence and the default."""

import inspect
import re
import shutil
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import DefaultHelpFormatter, Namespace
from torch import Tensor

from lightning_meta import models

_WIDTH = 120
_COLUMN = 46
_LONGEST_TYPE = 50
_INSTEAD = {
    "ckpt_path": "The checkpoint to start from: `best` or `last` of this run's folder, or a file's path.",
    "weights_only": "Read tensors and plain values only from a checkpoint, which runs no code. Default: true.",
}


class HelpFormatter(DefaultHelpFormatter):
    """Shows of every option its type, its sentence, its default, and the classes of this package that it takes."""

    def __init__(self, prog: str, *args: Any, **kwargs: Any) -> None:
        width = shutil.get_terminal_size((_WIDTH, 24)).columns
        kwargs = {"max_help_position": min(_COLUMN, width // 2), "width": width - 1} | kwargs
        super().__init__(prog, *args, **kwargs)  # type: ignore[no-untyped-call]

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any, **kwargs: Any) -> None:
        """Name the required options and the commands only."""
        shown = [action for action in actions if action.required]
        super().add_usage(usage, shown, *args, **kwargs)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Keep the lines of a text that has several."""
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent) if not line.startswith(" ") else line for line in text.split("\n"))

    def _format_action(self, action: Action) -> str:
        # Each option that takes a class has a second one that shows the class's help; the end of the page tells of it.
        return "" if action.dest.endswith(".help") else super()._format_action(action)

    def _format_action_invocation(self, action: Action) -> str:
        # `--option+`, which appends to a list, would say the same again.
        shown = super()._format_action_invocation(action)
        return shown.split(f", {action.option_strings[0]}+")[0] if action.option_strings else shown

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        hint = getattr(action, "_typehint", action.type)
        short = "" if hint is None else short_type(hint)
        return short if 0 < len(short) <= _LONGEST_TYPE else super()._get_default_metavar_for_optional(action)

    def _get_help_string(self, action: Action) -> str:
        text, said = _sentence_and_default(_INSTEAD.get(action.dest, action.help or ""))
        notes = ["required"] if action.required else []
        if action.option_strings and action.default != SUPPRESS and not action.required:
            notes.append(f"default: {said if said and action.default is None else short_value(action.default)}")
        classes = own_classes(action)
        if classes:
            notes.append(f"such as {', '.join(classes)}")
        note = f"({'; '.join(notes)})" if notes else ""
        return text if text.endswith(note) else f"{text} {note}".lstrip()


def own_classes(action: Action) -> list[str]:
    """The paths of this package's classes that an option takes."""
    list_all: Callable[[], str] = getattr(action, "extra_help", str)
    found = re.findall(r"lightning_meta\.(?!cli\.)(?:\w+\.)*\w+", list_all())
    networks = sorted(path for path in found if path.rsplit(".", 1)[-1] in models.__all__)
    return networks or found  # an algorithm is an nn.Module, too, but no network


def short_type(hint: Any) -> str:
    """A type as a person would write it.

    Example:
        >>> short_type(int | tuple[int, int] | None), short_type(Callable[[Iterable[Any]], Tensor])
        ('int|[int, int]|null', 'function')
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return "any"
    if hint in (None, NoneType):
        return "null"
    if origin in (Union, UnionType):
        return "|".join(dict.fromkeys(short_type(part) for part in inner))
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is not None and inspect.isclass(origin) and issubclass(origin, tuple):
        return f"[{', '.join('...' if part is ... else short_type(part) for part in inner)}]"
    if origin is Callable:
        made = inner[-1] if inner else Any
        return "function" if made in (Any, Tensor) else short_type(made)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(short_type, inner))}]"
    return str(getattr(hint, "__name__", hint))


def short_value(value: Any) -> str:
    """A default, an object as the call that makes it.

    Example:
        >>> short_value({"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}), short_value(None)
        ('Adam(lr=0.001)', 'null')
    """
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict) and "class_path" in value:
        arguments = ", ".join(f"{name}={given}" for name, given in value.get("init_args", {}).items())
        return f"{value['class_path'].rsplit('.', 1)[-1]}({arguments})"
    return str(value).lower().replace("none", "null") if type(value) in (NoneType, bool) else str(value)


def _sentence_and_default(text: str) -> tuple[str, str | None]:
    """An option's description as plain text, and the default that it names at its end, as Lightning's do."""
    text = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", text).replace("``", "`")
    named = re.search(r"\s*Default: [`'\"]*(.+?)[`'\"]*\.?$", text)
    return (text[: named.start()], named[1].replace("None", "null")) if named else (text, None)
