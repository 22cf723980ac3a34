"""What the README and the pages beside it show works."""

import importlib
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_meta.cli.commands import COMMANDS
from lightning_meta.cli.main import main
from tests.cli.test_main import QUIET
from tests.datamodules.test_image_folder import photos
from tests.documents import PAGES, ROOT, blocks, commands, files, programs
from tests.text.models import stand_ins

PROGRAMS = [(page, number) for page in PAGES for number in range(len(programs(page)))]
FEW = {"steps_per_epoch": 2, "meta_batch_size": 2, "val_tasks": 2, "test_tasks": 2, "eval_batch_size": 2}
SMALL = ["--trainer.max_epochs=1", *(f"--data.{name}={value}" for name, value in FEW.items())]
OURS = [page for page in PAGES if any(words[0] == "lightning-meta" for words in commands(page))]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """What is shown is small: more threads only wait for each other, above all in the many short steps of a rollout."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("page", "number"), PROGRAMS, ids=lambda value: str(value))
def test_python(page, number, tmp_path, monkeypatch):
    """As written, on a few batches."""
    program = programs(page)[number]
    if program.mark.startswith("not run: "):
        compile(program.code, page, "exec")
        return
    if program.mark.startswith("needs "):
        library = program.mark.removeprefix("needs ")
        pytest.importorskip(library, reason=f"{page} shows {library}, which is not installed")
    monkeypatch.chdir(tmp_path)
    if "photos" in program.code:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        photos(tmp_path / "photos", [f"class{i}" for i in range(30)], each=7)
    if "TextDataModule" in program.code:
        stand_ins(tmp_path, monkeypatch)
    few = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer
    monkeypatch.setattr(pl, "Trainer", lambda **given: trainer(**given | few | quiet))
    exec(compile(program.code, f"{page}, program {number}", "exec"), {"__name__": "readme"})


def test_there_are_examples_of_all_three_ways():
    code = "\n".join(program.code for page in PAGES for program in programs(page))
    assert len(PROGRAMS) > 20
    assert "class RegularizedMAML(MAMLModule)" in code
    assert "trainer.fit(module, data)" in code
    assert len(OURS) >= 3


def test_what_is_not_run_says_why():
    for page in PAGES:
        for language in ("python", "bash"):
            for block in blocks(page, language):
                assert re.fullmatch(r"|continues|needs \w+|not run: \w.{10,}", block.mark), (page, block.mark)
        assert not list(blocks(page, "py")), page


@pytest.mark.timeout(900)  # a page has up to a dozen commands
@pytest.mark.parametrize("page", OURS)
def test_commands(page, tmp_path, monkeypatch, request):
    """In the order written, on a few tasks: `test` finds the checkpoint that `fit` left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("configs", "scripts"):
        Path(name).symlink_to(ROOT / name)
    for name, content in files(page):
        Path(name).write_text(content)
    if "photos" in PAGES[page]:
        photos(tmp_path / "photos", [f"class{i}" for i in range(30)], each=7)
        photos(tmp_path / "support", [f"new{i}" for i in range(5)], each=2)
        Path("new").symlink_to("support/new0")
    if "texts.csv" in PAGES[page]:
        stand_ins(tmp_path, monkeypatch)
    for words in commands(page):
        if words[0] != "lightning-meta":
            continue
        if "DATA" in words:
            words[words.index("DATA")] = str(request.getfixturevalue("omniglot_root"))
        alone = words[1] in COMMANDS
        main([*words[1:], *([] if alone else SMALL + QUIET)])


@pytest.mark.parametrize("page", PAGES)
def test_what_the_pages_name_is_there(page):
    text, folder = PAGES[page], (ROOT / page).parent
    for path in re.findall(r"`((?:configs|scripts|lightning_meta|tests|benchmarks|docs)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)", text):
        generated = folder.name == "docs" and (path.startswith("reference/") or path in ("contributing.md", "index.md"))
        assert generated or (folder / path).exists(), path
    for path in re.findall(r"`\./scripts/test ([\w/.]+)", text):
        assert (ROOT / path).exists(), path
    for words in commands(page):
        for word in words[:2]:
            if "/" in word and word.startswith(("./scripts", "scripts", "benchmarks")):
                assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_that_the_pages_mention_exist(page):
    for module, name in re.findall(r"`(lightning_meta(?:\.[a-z_]+)*)\.(\w+)`", PAGES[page]):
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.import_module(f"{module}.{name}"), f"{module}.{name}"


def test_the_readme_is_a_front_page():
    assert len(PAGES["README.md"].split()) <= 1200
    assert "./scripts/quickstart" in PAGES["README.md"]
    assert "./scripts/test" in PAGES["README.md"]
