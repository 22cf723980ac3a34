"""Imports flow one way, and only some packages know of Lightning."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_meta
from lightning_meta import modules

PACKAGE = Path(lightning_meta.__file__).parent
LEVELS = [
    {"__about__", "errors"},
    {"task", "randomness", "hyperparameters", "files", "models"},
    {"functional", "datasets", "metrics", "export"},
    {"inner"},
    {"algorithms"},
    {"modules", "datamodules", "callbacks"},
    {"text", "rl"},
    {"testing"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
KNOW_LIGHTNING = {"modules", "datamodules", "callbacks", "text", "rl", "cli"}


def imports():
    """(importing part, imported module) for every import in the package."""
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield part, node.module
            elif isinstance(node, ast.Import):
                yield from ((part, alias.name) for alias in node.names)


def test_every_part_has_a_level():
    parts = {
        p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert parts == set().union(*LEVELS)


def test_imports_flow_one_way():
    level = {part: i for i, parts in enumerate(LEVELS) for part in parts}
    for part, module in imports():
        pieces = module.split(".")
        if pieces[0] == "lightning_meta":
            other = pieces[1] if len(pieces) > 1 else "__init__"
            assert other == part or level[other] < level[part], f"{part} imports {module}"
            assert {part, other} != {"modules", "datamodules"}


def test_only_some_parts_import_lightning():
    for part, module in imports():
        if module.split(".")[0] in ("lightning", "pytorch_lightning"):
            assert part in KNOW_LIGHTNING, f"{part} imports {module}"


def test_the_maths_is_free_of_lightning_transitively():
    """Whatever `functional`, `inner` and `algorithms` import of the package, and what that imports."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("lightning_meta", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                graph[name] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
    rooms = ("functional", "inner", "algorithms")
    todo = [name for name in graph if name.split(".")[1:2] and name.split(".")[1] in rooms]
    seen = set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph.get(name, ())
    assert len(seen & graph.keys()) > 25
    assert not {name for name in seen if name.split(".")[0] in ("lightning", "pytorch_lightning")}


def test_every_room_says_what_belongs_in_it():
    for room in PACKAGE.rglob("__init__.py"):
        docstring = ast.get_docstring(ast.parse(room.read_text()))
        assert docstring, room
        assert len(docstring.splitlines()) == 1, room


def test_files_of_modules_and_algorithms_are_short():
    for room in ("modules", "algorithms", "inner"):
        for path in (PACKAGE / room).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 250, path


def test_no_module_is_a_tower():
    for name in modules.__all__:
        chain = [cls for cls in getattr(modules, name).__mro__ if cls.__module__.startswith("lightning_meta")]
        assert len(chain) <= 2, chain
        if len(chain) == 2:
            own = {n for n, value in vars(chain[0]).items() if callable(value)} & {
                n for n, value in vars(chain[1]).items() if callable(value)
            }
            assert own <= {"__init__"}, (name, own)


def test_import_is_fast():
    """Beyond Lightning and torchvision, importing the package takes at most half a second, at the best of three."""
    code = (
        "import time, lightning.pytorch, torchvision; start = time.process_time(); import lightning_meta;"
        "print(time.process_time() - start)"
    )
    for _ in range(3):  # another process on the machine is no reason
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        if float(run.stdout) < 0.5:
            return
    pytest.fail(f"Importing the package takes {run.stdout.strip()} s.")
