"""Commands that need no Trainer: each is a function of its options, and their help comes at once."""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightning_meta.cli import compare, deploy, new


class Command(NamedTuple):
    """A command.

    Attributes:
        sentence: What it does.
        add_arguments: Adds its options to a parser.
        run: Does it.
    """

    sentence: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


COMMANDS = {
    "compare": Command("Compare runs on the tasks that all were tested on.", compare.add_arguments, compare.run),
    "adapt": Command("Adapt to a folder of images of each class.", deploy.add_adapt_arguments, deploy.adapt),
    "classify": Command("Classify images by an adapted model.", deploy.add_classify_arguments, deploy.classify),
    "new": Command("Begin a project of your own.", new.add_arguments, new.run),
}


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Run a command.

    Args:
        name: A key of `COMMANDS`.
        arguments: Its options.

    Raises:
        SystemExit: They cannot be read; the status is 2.
    """
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"lightning-meta {name}", description=command.sentence)
    command.add_arguments(parser)
    command.run(parser.parse_intermixed_args(arguments))


def listed() -> str:
    """The commands with their sentences, for the help of all."""
    return "\n".join(f"  {name:<12}{command.sentence}" for name, command in COMMANDS.items())
