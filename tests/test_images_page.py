"""The names in docs/images.md; its programs and commands are run with those of the other pages."""

import re
from pathlib import Path

import pytest

import lightning_meta
from lightning_meta.datasets import image_folder

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
