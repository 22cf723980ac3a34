"""The documentation site, without building it."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import lightning_meta
from tests.test_scripts import script

ROOT = Path(__file__).parents[1]


def public_names():
    """Every name of `__all__` of the package and of what is right below it, found by importing it."""
    for info in pkgutil.iter_modules(lightning_meta.__path__):
        if info.name != "__main__":
            module = importlib.import_module(f"lightning_meta.{info.name}")
            yield from ((module.__name__, name) for name in getattr(module, "__all__", ()))


def test_every_public_name_has_a_page():
    pages = script("docs_pages").reference_pages()
    names = list(public_names())
    assert len(names) > 80
    for module, name in names:
        value = getattr(importlib.import_module(module), name)
        page = pages[f"reference/{module.rpartition('.')[2]}.md"]
        (found,) = re.findall(rf"^::: ({module}(?:\.{name}){{1,2}})$", page, re.MULTILINE)
        assert pkgutil.resolve_name(found) is value, f"{found} is something else than {module}.{name}"
        assert f"[`{name}`][{found}]" in pages["reference/index.md"], f"{module}.{name}"


def test_what_the_package_itself_exports_is_described_in_a_module_below():
    below = {name for _, name in public_names()}
    assert set(lightning_meta.__all__) - below == {"__version__"}


@pytest.mark.parametrize(("module", "name"), list(public_names()))
def test_every_public_class_and_function_has_a_docstring(module, name):
    """What has none would be an empty place in the reference."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert (value.__doc__ or "").strip()


def test_links_of_the_front_page_are_those_of_the_site():
    page = script("docs_pages").front_page("README.md")
    assert "](docs/" not in page
    assert "](results.md)" in page


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f": {path.name}\n" in navigation, f"{path.name} has no place in the navigation of mkdocs.yml"


def test_formulas_become_those_of_the_site():
    pytest.importorskip("griffe", reason="the documentation is built with it: pip install lightning-meta[docs]")
    markdown = script("docs_docstrings").markdown
    found = markdown("Before\n\n.. math::\n    a_b,\n    c\n\nwith :math:`\\phi`.")
    assert found == "Before\n\n```math\na_b, c\n```\n\nwith `#!math \\phi`."
    assert markdown(".. math:: a\n\nb") == "```math\na\n```\n\nb"
