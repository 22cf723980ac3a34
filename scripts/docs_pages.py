"""Pages of the site that are not files in docs/: README, contributing, changelog and a reference of every public name.

mkdocs calls the functions `on_...`: see mkdocs.yml.
"""

import ast
import re
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_meta"
FRONT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def public_modules() -> dict[str, list[str]]:
    """The public names of each module and package right below the package: what its `__all__` lists.

    Read from the source, so that nothing is imported; a new subpackage is found without being named here.
    """
    found = {}
    for path in sorted((ROOT / PACKAGE).iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix != ".py" or not source.is_file() or path.name.startswith("_"):
            continue
        names = _listed(source)
        if names:
            found[f"{PACKAGE}.{path.stem}"] = names
    return found


def _listed(source: Path) -> list[str]:
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return sorted(ast.literal_eval(node.value), key=str.lower)
    return []


def _summary(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(source.read_text())) or "").splitlines()[0]


def identifier(module: str, name: str) -> str:
    """How mkdocstrings finds a name: past a submodule of the same name, which it would take instead."""
    is_hidden = (ROOT / module.replace(".", "/") / f"{name}.py").is_file()
    return f"{module}.{name}.{name}" if is_hidden else f"{module}.{name}"


def reference_pages() -> dict[str, str]:
    """The reference: a page for each module, by its name in docs/, and one that lists them."""
    top = set(_listed(ROOT / PACKAGE / "__init__.py"))
    pages, rows = {}, []
    for module, names in public_modules().items():
        blocks = "\n\n".join(f"::: {identifier(module, name)}" for name in names)
        short = module.rpartition(".")[2]
        pages[f"reference/{short}.md"] = f"# {module}\n\n{_summary(module)}\n\n{blocks}\n"
        links = [f"[`{name}`][{identifier(module, name)}]" for name in names]
        links = [f"**{link}**" if name in top else link for name, link in zip(names, links, strict=True)]
        rows.append(f"| [{short}]({short}.md) | {_summary(module)} | {', '.join(links)} |")
    table = "\n".join(["| module | what is in it | names |", "|---|---|---|", *rows])
    pages["reference/index.md"] = (
        "# API reference\n\nEvery public name, by the module of `lightning_meta` that has it. Those in bold can be "
        f"imported from `lightning_meta` itself, too, as can the version, `lightning_meta.__version__`.\n\n{table}\n"
    )
    return pages


def front_page(name: str) -> str:
    """A document at the root of the repository, with links that are right in docs/."""
    text = (ROOT / name).read_text()
    for document, page in FRONT.items():
        text = text.replace(f"]({document}", f"]({page}")
    return re.sub(r"(\]\(|src=\")docs/", r"\1", text).replace("](LICENSE)", "](license.md)")


def _math(source: str, display: str) -> str:
    """A formula as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    # What the converter does not know, and words, which it would take for products of letters.
    source = source.strip().replace(r"\tfrac", r"\frac").replace(r"\arg", r"\mathrm{arg}")
    return convert(re.sub(r"([_^])\{([a-z]{2,})\}", r"\1{\\mathrm{\2}}", source), display=display)


def _block(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="math">{_math(source, "block")}</div>'


def _inline(source: str, *_: Any, **__: Any) -> Any:
    from xml.etree.ElementTree import fromstring

    return fromstring(_math(source, "inline").replace(' xmlns="http://www.w3.org/1998/Math/MathML"', ""))


def on_config(config: Any) -> Any:
    """Let ```math blocks and `#!math ...` be formulas, and give the reference its place."""
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "math", "format": _block}
    ]
    config["mdx_configs"].setdefault("pymdownx.inlinehilite", {})["custom_inline"] = [
        {"name": "math", "class": "math", "format": _inline}
    ]
    pages = [{Path(page).stem: page} for page in reference_pages() if page != "reference/index.md"]
    for tab in config["nav"]:
        if "API reference" in tab:
            tab["API reference"] = ["reference/index.md", *pages]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    pages = {page: front_page(document) for document, page in FRONT.items()}
    pages["license.md"] = f"# Licence\n\n<pre>{escape((ROOT / 'LICENSE').read_text())}</pre>\n"
    for name, content in (pages | reference_pages()).items():
        files.append(File.generated(config, name, content=content))
    return files


def on_post_build(config: Any) -> None:
    """Hold that every public name is described."""
    site = Path(config["site_dir"])
    for module, names in public_modules().items():
        page = (site / "reference" / module.rpartition(".")[2] / "index.html").read_text()
        missing = [name for name in names if f'id="{identifier(module, name)}"' not in page]
        if missing:
            raise SystemExit(f"The reference of {module} has nothing about {', '.join(missing)}.")
