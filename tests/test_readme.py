"""What the README and the documents beside it show works."""

import re
import shlex
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest

from lightning_meta.cli.main import main
from tests.cli.test_main import QUIET
from tests.datamodules.test_image_folder import photos

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PYTHON = re.findall(r"```python\n(.*?)```", README + "".join(DOCUMENTS.values()), re.DOTALL)
COMMANDS = re.findall(r"^lightning-meta (.*)$", README, re.MULTILINE)
SMALL = ["--data.steps_per_epoch", "2", "--data.val_tasks", "2", "--data.test_tasks", "2", "--trainer.max_epochs", "1"]


@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_python(block, tmp_path, monkeypatch):
    """As written, on a few batches."""
    if "MetaWorld" in PYTHON[block]:
        pytest.importorskip("metaworld", reason="metaworld, of the extra rl, is not installed")
    monkeypatch.chdir(tmp_path)
    few = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1, "accelerator": "cpu"}
    monkeypatch.setattr(pl, "Trainer", partial(pl.Trainer, **few, enable_progress_bar=False))
    exec(compile(PYTHON[block], f"README block {block}", "exec"), {"__name__": "readme"})


def test_there_are_examples_of_all_three_ways():
    assert README.count("```python\n") == 5
    assert len(COMMANDS) >= 4


def test_commands(tmp_path, request):
    """In the order written: `test` finds the checkpoint that `fit` left."""
    for command in COMMANDS:
        if "photos" in command:
            continue
        arguments = shlex.split(command)
        if "DATA" in arguments:
            arguments[arguments.index("DATA")] = str(request.getfixturevalue("omniglot_root"))
        config = arguments.index("--config") + 1
        run = tmp_path / Path(arguments[config]).stem
        arguments[config] = str(ROOT / arguments[config])
        main([*arguments, *SMALL, *QUIET, "--trainer.default_root_dir", str(run)])


def test_own_images(tmp_path, monkeypatch):
    """The commands with the configuration that is shown, on photos of sizes and numbers of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (shown,) = re.findall(r"```yaml\n# photos.yaml\n(.*?)```", README, re.DOTALL)
    Path("photos.yaml").write_text(shown)
    photos(tmp_path / "photos", [f"class{i}" for i in range(30)], each=6)
    commands = [command for command in COMMANDS if "photos" in command]
    assert len(commands) == 2
    for command in commands:
        made = main([*shlex.split(command), *SMALL, *QUIET])
    assert "test/query_accuracy" in made.trainer.callback_metrics
    assert Path("runs/photos/classes.json").is_file()


def test_every_path_that_is_named_exists():
    for path in re.findall(r"`((?:configs|scripts|lightning_meta|tests)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_the_documents_name_is_there(name):
    document = DOCUMENTS[name]
    for path in re.findall(r"`((?:configs|scripts|lightning_meta|tests)/[\w/.]*)`", document):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w/.]+)\)", document):
        assert (ROOT / "docs" / path).exists(), path
    for path in re.findall(r"`\./scripts/test ([\w/.]+)", document):
        assert (ROOT / path).exists(), path
