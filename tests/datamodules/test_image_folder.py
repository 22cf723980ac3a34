"""Photos of one's own."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_meta import Conv4, ImageFolderDataModule, MAMLModule, class_split
from lightning_meta.datamodules.labelled import base_of
from lightning_meta.datasets import ClassDataset, image_folder
from lightning_meta.datasets.image_folder import read_image
from lightning_meta.errors import ConfigurationError, DataError, MissingFileError
from tests.modules.test_maml import trainer

SMALL = {"image_size": 12, "n_way": 2, "k_shot": 1, "n_query": 2, "meta_batch_size": 2, "steps_per_epoch": 2}


def photos(root, classes, each=4, seed=0):
    """Images of different sizes, of a colour for each class."""
    random = np.random.default_rng(seed)
    for name in classes:
        folder = root / name
        folder.mkdir(parents=True)
        colour = random.integers(0, 255, 3)
        for i in range(each):
            size = random.integers(14, 40, 2)
            pixels = (colour * 0.8 + random.integers(0, 50, (*size, 3))).astype("uint8")
            Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")


def module(root, tmp_path, **options):
    return ImageFolderDataModule(str(root), cache=str(tmp_path / "cache"), **SMALL | options)


def test_a_folder_of_classes_is_divided_by_a_seed(tmp_path):
    photos(tmp_path / "photos", [f"class{i}" for i in range(10)])
    data = module(tmp_path / "photos", tmp_path, test_tasks=2, val_tasks=2)
    data.prepare_data()
    data.setup()
    assert [len(names) for names in data.split_classes.values()] == [6, 2, 2]
    assert len({name for names in data.split_classes.values() for name in names}) == 10
    again, other = module(tmp_path / "photos", tmp_path), module(tmp_path / "photos", tmp_path, split_seed=1)
    for each in (again, other):
        each.setup()
    assert again.split_classes == data.split_classes != other.split_classes
    batch = next(iter(data.train_dataloader()))
    assert batch.support.inputs.shape == (2, 2, 3, 12, 12)
    assert batch.support.inputs.max() <= 1
    own = trainer(tmp_path / "run")
    own.fit(MAMLModule(Conv4(2, hidden=4, in_channels=3, image_size=12), 0.1), data)
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == data.split_classes


def test_splits_with_folders_of_their_own(tmp_path):
    for split, names in {"train": "abc", "val": "de", "test": "fg"}.items():
        photos(tmp_path / "photos" / split, names)
    data = module(tmp_path / "photos", tmp_path)
    data.setup()
    assert data.split_classes == {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f", "g"]}
    photos(tmp_path / "numbers" / "train", "012")
    photos(tmp_path / "numbers" / "test", "01")
    with pytest.raises(ConfigurationError, match=r"share classes: 0, 1\..*same_names='different'"):
        module(tmp_path / "numbers", tmp_path).setup()
    module(tmp_path / "numbers", tmp_path, same_names="different").setup()


def test_a_table_names_the_images(tmp_path):
    photos(tmp_path / "photos", ["x"], each=12)
    lines = [f"x/{i}.{'png' if i % 2 else 'jpg'},kind {i % 3},train" for i in range(12)]
    (tmp_path / "table.csv").write_text("path,label,split\n" + "\n".join(lines))
    data = module(tmp_path / "photos", tmp_path, table=str(tmp_path / "table.csv"))
    data.setup()
    assert data.split_classes == {"train": ["kind 0", "kind 1", "kind 2"]}
    pixels = base_of(data.datasets["train"]).inputs
    assert np.array_equal(pixels[0], read_image(tmp_path / "photos" / "x" / "0.jpg", 12, False))
    (tmp_path / "wrong.csv").write_text("file,label\n")
    with pytest.raises(ConfigurationError, match=r"needs the columns path and label; .*'file'"):
        module(tmp_path / "photos", tmp_path, table=str(tmp_path / "wrong.csv")).setup()
    (tmp_path / "wrong.csv").write_text("path,label,split\nx/0.jpg,a,testing\n")
    with pytest.raises(ConfigurationError, match=r"line 2: split 'testing'"):
        module(tmp_path / "photos", tmp_path, table=str(tmp_path / "wrong.csv")).setup()


def test_images_of_every_kind(tmp_path):
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "16bit.png")
    found = read_image(tmp_path / "16bit.png", 16, True)
    assert abs(found[0].astype(float) - ramp / 257).max() <= 1  # scaled, not clipped
    assert np.array_equal(read_image(tmp_path / "16bit.png", 16, False), found.repeat(3, 0))
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:8] = (255, 0, 0, 255)
    Image.fromarray(clear).save(tmp_path / "rgba.png")
    found = read_image(tmp_path / "rgba.png", 16, False)
    assert found[:, 0, 0].tolist() == [255, 0, 0]
    assert found[:, 15, 0].tolist() == [255, 255, 255]
    Image.fromarray(clear[..., :3]).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg", 16, False)[0, 2, 2] > 200
    upright = np.zeros((20, 10, 3), np.uint8)
    upright[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(upright).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(
        read_image(tmp_path / "turned.png", 10, True)[0] > 127, np.arange(10)[:, None].repeat(10, 1) < 5
    )
    Image.fromarray(clear[..., 0]).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png", 8, False).shape == (3, 8, 8)
    Image.fromarray(clear[..., :3]).convert("P").save(tmp_path / "palette.gif")
    assert read_image(tmp_path / "palette.gif", 8, False)[0, 0, 0] > 200


def test_an_image_that_cannot_be_read_is_named_before_training(tmp_path):
    photos(tmp_path / "photos", [f"class{i}" for i in range(10)])
    broken = tmp_path / "photos" / "class3" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "photos" / "class4" / ".hidden.png").write_bytes(b"")
    (tmp_path / "photos" / ".thumbnails").mkdir()
    (tmp_path / "photos" / "class4" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match=r"1 of 40 images cannot be read: .*class3.1\.png .*on_unreadable='skip'"):
        module(tmp_path / "photos", tmp_path).prepare_data()
    data = module(tmp_path / "photos", tmp_path, on_unreadable="skip")
    data.setup()
    assert sum(len(part) for part in data.datasets.values()) == 39


def test_images_are_decoded_once(tmp_path, monkeypatch):
    photos(tmp_path / "photos", [f"class{i}" for i in range(10)])
    module(tmp_path / "photos", tmp_path).setup()
    decoded = []
    own = read_image
    monkeypatch.setattr(image_folder, "read_image", lambda path, *a: decoded.append(path) or own(path, *a))
    module(tmp_path / "photos", tmp_path).setup()
    assert not decoded
    Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / "class1" / "0.jpg")
    changed = module(tmp_path / "photos", tmp_path)
    changed.setup()
    assert len(decoded) == 40
    pixels = base_of(changed.datasets["train"]).inputs[4]  # the first of the second class
    assert pixels[0].min() > 250
    assert pixels[1:].max() < 5
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_full_disk_is_one_error_that_leaves_nothing(tmp_path, monkeypatch):
    photos(tmp_path / "photos", [f"class{i}" for i in range(5)])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"cannot be written to .*cache: No space left on device\. Make room"):
        module(tmp_path / "photos", tmp_path).setup()
    assert not list((tmp_path / "cache").iterdir())


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    photos(tmp_path / "photos", [f"class{i}" for i in range(5)])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_folder, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module(tmp_path / "photos", tmp_path).setup()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"on_unreadable": "ignore"}, "on_unreadable must be"),
        ({"split": (0.5, 0.5, 0.5)}, "at most 1 together"),
        ({"split": (0.6, -0.2, 0.2)}, "must not be negative"),
    ],
)
def test_arguments_without_a_meaning_are_refused(tmp_path, options, message):
    photos(tmp_path / "photos", [f"class{i}" for i in range(5)])
    with pytest.raises(ConfigurationError, match=message):
        module(tmp_path / "photos", tmp_path, **options).setup()


def test_folders_without_images_say_how_they_should_be(tmp_path):
    with pytest.raises(MissingFileError, match="There is no folder"):
        module(tmp_path / "nowhere", tmp_path).setup()
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"has no images\. .*<class>"):
        module(tmp_path / "empty", tmp_path).setup()


def test_class_split():
    data = ClassDataset(torch.arange(60.0), torch.arange(12).repeat_interleave(5))
    parts = class_split(data, [0.5, 0.25, 0.25], seed=3)
    labels = [set(data.targets[part.indices].tolist()) for part in parts]
    assert [len(each) for each in labels] == [6, 3, 3]
    assert set().union(*labels) == set(range(12))
    assert [part.indices for part in class_split(data, [0.5, 0.25, 0.25], seed=3)] == [part.indices for part in parts]
    assert [len(part) for part in class_split(data, [1.0, 0.0, 0.0])] == [60, 0, 0]
    assert all(len(part) for part in class_split(data, [0.98, 0.01, 0.01]))
    with pytest.raises(ConfigurationError, match="2 classes cannot be divided into 3"):
        class_split(ClassDataset(torch.zeros(4), [0, 0, 1, 1]), [0.6, 0.2, 0.2])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_takes_no_memory_of_its_own(tmp_path):
    photos(tmp_path / "photos", [f"class{i}" for i in range(10)])
    data = module(tmp_path / "photos", tmp_path)
    data.setup()
    pixels = base_of(data.datasets["train"]).inputs
    maps = Path("/proc/self/maps").read_text()
    assert any(".npy" in line and str(tmp_path / "cache") in line for line in maps.splitlines())
    assert pixels.dtype == torch.uint8


def test_files_are_looked_at_once_in_a_process(tmp_path, monkeypatch):
    photos(tmp_path / "photos", [f"class{i}" for i in range(10)])
    looked = []
    own = ImageFolderDataModule._files
    monkeypatch.setattr(ImageFolderDataModule, "_files", lambda self: looked.append(1) or own(self))
    data = module(tmp_path / "photos", tmp_path)
    data.prepare_data()
    data.setup()
    assert len(looked) == 1
    again = module(tmp_path / "photos", tmp_path)  # a process that prepares nothing
    again.setup()
    assert len(looked) == 2
    assert again.split_classes == data.split_classes


def test_files_of_a_class_are_in_the_order_of_their_folders(tmp_path):
    for name in ("b/2.png", "b-1.png", "b/.hidden/3.png", "a/x/1.PNG", "a/0.txt", "c.jpeg", ".d.png"):
        path = tmp_path / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = image_folder.list_folders(tmp_path).paths
    assert found == [str(tmp_path / "class" / name) for name in ("a/x/1.PNG", "b/2.png", "b-1.png", "c.jpeg")]
    assert found == [str(path) for path in sorted(map(Path, found))]


def test_a_row_without_a_label_is_named(tmp_path):
    (tmp_path / "photos.csv").write_text("path,label\na.png, oak \nb.png\n")
    with pytest.raises(DataError, match=r"photos\.csv, line 3: a path or a label is missing"):
        image_folder.list_table(tmp_path / "photos.csv", tmp_path)
    (tmp_path / "photos.csv").write_text("path,label\na.png, oak \nb.png,oak\n")
    assert image_folder.list_table(tmp_path / "photos.csv", tmp_path)[""].classes == ["oak"]
