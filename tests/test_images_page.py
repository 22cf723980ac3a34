"""The names in docs/images.md; its programs and commands are run with those of the other pages."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import lightning_meta
from lightning_meta.datasets import image_folder
from tests.datamodules.test_image_folder import photos

PAGE = (Path(__file__).parents[1] / "docs" / "images.md").read_text()


def test_the_table_that_is_shown_is_read(tmp_path):
    (shown,) = re.findall(r"```text\n(path,.*?)```", PAGE, re.DOTALL)
    (tmp_path / "photos.csv").write_text(shown)
    found = image_folder.list_table(tmp_path / "photos.csv", tmp_path)
    assert {split: files.classes for split, files in found.items()} == {"train": ["oak"], "test": ["birch"]}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+(?:DataModule|Module))\b", PAGE))))
def test_names_exist(name):
    assert hasattr(lightning_meta, name)


@pytest.mark.parametrize("name", sorted(set(re.findall(r'FineGrainedDataModule\("([\w-]+)"', PAGE))))
def test_fine_grained_names_exist(name):
    lightning_meta.FineGrainedDataModule(name, "nowhere")


def test_ordinary_training_is_compared_with_meta_training(tmp_path, monkeypatch, capsys):
    """The program behind the page's table, for a moment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    pretraining = importlib.import_module("pretraining")
    monkeypatch.setattr(pretraining, "TASKS", 8)
    for split, names in {"train": "abcdef", "val": "ghijk", "test": "lmnop"}.items():
        photos(tmp_path / "data" / split, names, each=20)
    threads = torch.get_num_threads()
    pretraining.main(str(tmp_path / "data"), 0.5)
    torch.set_num_threads(threads)
    lines = [line for line in capsys.readouterr().out.splitlines() if "5-way 1-shot" in line]
    assert len(lines) == 3
    accuracies = [float(found) for line in lines for found in re.findall(r"shot: ([\d.]+)", line)]
    assert len(accuracies) == 6
    assert min(accuracies) > 30  # a colour for each class is told apart better than by chance
