"""Imports flow one way, and only some packages know of Lightning."""

import ast
import subprocess
import sys
from pathlib import Path

import lightning_meta

PACKAGE = Path(lightning_meta.__file__).parent
LEVELS = [
    {"__about__", "task", "randomness", "hyperparameters", "errors"},
    {"functional", "models", "datasets", "metrics"},
    {"inner"},
    {"modules", "datamodules", "callbacks"},
    {"__init__"},
    {"parser", "run_folder"},
    {"main"},
    {"__main__"},
]
KNOW_LIGHTNING = {"errors", "modules", "datamodules", "callbacks", "main", "hyperparameters", "parser", "run_folder"}


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


def test_import_is_fast():
    """Beyond Lightning and torchvision, importing the package takes at most half a second (median of three)."""
    code = (
        "import time, lightning.pytorch, torchvision; start = time.perf_counter(); import lightning_meta;"
        "print(time.perf_counter() - start)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert sorted(float(run.stdout) for run in runs)[1] < 0.5
