"""What data modules are told: whole numbers, and ranges of them."""

from collections.abc import Sequence
from itertools import product
from typing import Any, TypeAlias

from lightning_meta.errors import ArgumentTypeError, ConfigurationError

Range: TypeAlias = int | tuple[int, int]
"""A whole number, or the smallest and the largest one that may be drawn."""


def check_number(name: str, value: Any, least: int = 1, below: int | None = None) -> None:
    """Refuse what is not a whole number of at least `least` and, if that is given, below `below`.

    Raises:
        ArgumentTypeError: It is not a whole number.
        ConfigurationError: It is out of its bounds.
    """
    if type(value) is not int:
        raise ArgumentTypeError(f"{name} must be a whole number, got {value!r}.")
    if value < least or (below is not None and value >= below):
        upper = "" if below is None else f" and below {below}"
        raise ConfigurationError(f"{name} must be at least {least}{upper}, got {value}.")


def check_range(name: str, value: Any) -> None:
    """Refuse what is neither a whole number of at least 1 nor a range of such.

    Raises:
        ArgumentTypeError: It is neither a whole number nor a pair of them.
        ConfigurationError: It is below 1, or a range is upside down.
    """
    if isinstance(value, tuple):
        if len(value) != 2 or any(type(bound) is not int for bound in value):
            raise ArgumentTypeError(f"{name} must be a whole number or a range (smallest, largest), got {value!r}.")
        if value[0] > value[1]:
            raise ConfigurationError(
                f"{name} must be a range (smallest, largest), got {value}. Did you mean ({value[1]}, {value[0]})?"
            )
    elif type(value) is not int:
        raise ArgumentTypeError(
            f"{name} must be a whole number, got {value!r}. A range is a tuple (smallest, largest)."
        )
    if bounds(value)[0] < 1:
        raise ConfigurationError(f"{name} must be at least 1, got {value}.")


def check_ranges(name: str, value: Any) -> None:
    """Refuse what is neither a number or range that `check_range` accepts nor a list of different ones.

    Raises:
        ArgumentTypeError: Something in it is of another kind.
        ConfigurationError: It is empty, has an entry twice, or an entry is out of bounds.
    """
    if not isinstance(value, list):
        check_range(name, value)
        return
    for entry in value:
        check_range(name, entry)
    if not value or len(set(value)) < len(value):
        raise ConfigurationError(f"{name} must be a list of one or more different entries, got {value}.")


def check_sampling(balanced: Any, min_examples: Any) -> None:
    """Refuse values of `balanced` and `min_examples` that have no meaning.

    Raises:
        ArgumentTypeError: One of them is of another kind.
        ConfigurationError: `min_examples` is below 2.
    """
    if type(balanced) is not bool:
        raise ArgumentTypeError(f"balanced must be True or False, got {balanced!r}.")
    if type(min_examples) is int and min_examples < 2:
        raise ConfigurationError(
            f"min_examples must be at least 2, one example to learn from and one to be judged on, got {min_examples}."
        )
    if min_examples is not None:
        check_number("min_examples", min_examples)


def bounds(value: Range) -> tuple[int, int]:
    """The smallest and the largest number of a range."""
    return value if isinstance(value, tuple) else (value, value)


def listed(value: Range | Sequence[Range]) -> list[Range]:
    """A list as it is; a number or a range as a list of one."""
    return value if isinstance(value, list) else [value]  # type: ignore[list-item]


def rows(n_way: Range | list[Range], k_shot: Range | list[Range]) -> list[tuple[Range, Range]]:
    """Every combination of way and shot."""
    return list(product(listed(n_way), listed(k_shot)))


def row_name(n_way: Range, k_shot: Range) -> str:
    """What tasks of this way and shot are called.

    Example:
        >>> row_name(5, 1), row_name((5, 20), (1, 5))
        ('5-way 1-shot', '5-20-way 1-5-shot')
    """
    way, shot = ("-".join(map(str, value if isinstance(value, tuple) else (value,))) for value in (n_way, k_shot))
    return f"{way}-way {shot}-shot"
