"""The field's data sets, on small files in their layouts."""

import importlib.util
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lightning_meta import (
    CIFARFSDataModule,
    FC100DataModule,
    FineGrainedDataModule,
    MiniImageNetDataModule,
    TieredImageNetDataModule,
)
from lightning_meta.datamodules.labelled import base_of, targets_of
from lightning_meta.datasets import packed
from lightning_meta.datasets.cifar_classes import CIFAR_FS, FC100
from lightning_meta.datasets.pickles import read_arrays
from lightning_meta.errors import ConfigurationError, DataError, MissingFileError
from tests.datamodules.test_image_folder import photos

SMALL = {"n_way": 2, "k_shot": 1, "n_query": 1, "meta_batch_size": 2, "steps_per_epoch": 2, "test_tasks": 2}
WORDS = {"train": ["n01", "n02", "n03"], "val": ["n04", "n05"], "test": ["n06", "n07"]}


def ready(kind, root, **options):
    """A data module that has prepared its data, and the names of the classes in each split."""
    first = {"name": options.pop("name")} if "name" in options else {}
    data = kind(**first, root=str(root), cache=str(Path(root) / "cache"), **SMALL | options)
    data.prepare_data()
    data.setup()
    names = {}
    for split, part in data.datasets.items():
        classes = base_of(part).classes
        names[split] = [classes[label] for label in np.unique(targets_of(part, split))]
    return data, names


def pixels_of(data, split, name):
    """The images of a class, as they lie in the data set."""
    part = data.datasets[split]
    base = base_of(part)
    chosen = [i for i, t in enumerate(targets_of(part, split)) if base.classes[t] == name]
    return torch.stack([part[i][0] for i in chosen])


def random_images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def cifar100(root):
    """Two training images and a test image of each class; the superclass of class i is i // 5 here."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = sorted(name for split in CIFAR_FS.values() for name in split)
    images = random_images(300, 32)
    for part, rows in {"train": range(200), "test": range(200, 300)}.items():
        labels = [i % 100 for i in rows]
        content = {
            "data": images[list(rows)].transpose(0, 3, 1, 2).reshape(len(rows), -1),
            "fine_labels": labels,
            "coarse_labels": [label // 5 for label in labels],
        }
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    return names, images


def test_the_classes_of_cifar_fs_and_fc100_are_all_of_cifar_100():
    assert {split: len(names) for split, names in CIFAR_FS.items()} == {"train": 64, "val": 16, "test": 20}
    assert len({name for names in CIFAR_FS.values() for name in names}) == 100
    assert sorted(number for numbers in FC100.values() for number in numbers) == list(range(20))
    assert {split: len(numbers) for split, numbers in FC100.items()} == {"train": 12, "val": 4, "test": 4}


def test_cifar_fs_and_fc100_from_torchvisions_files(tmp_path, monkeypatch):
    names, images = cifar100(tmp_path)
    data, found = ready(CIFARFSDataModule, tmp_path)
    assert {split: sorted(each) for split, each in found.items()} == {s: sorted(n) for s, n in CIFAR_FS.items()}
    number = names.index("whale")
    expected = torch.from_numpy(images[[number, 100 + number, 200 + number]]).permute(0, 3, 1, 2)
    assert torch.equal(pixels_of(data, "test", "whale"), expected)
    assert next(iter(data.train_dataloader())).support.inputs.shape == (2, 2, 3, 32, 32)
    monkeypatch.setattr(packed, "_pixels", None)  # unpacked already
    data, found = ready(FC100DataModule, tmp_path)
    assert {split: len(each) for split, each in found.items()} == {"train": 60, "val": 20, "test": 20}
    assert {names.index(name) // 5 for name in found["test"]} == {0, 7, 12, 14}
    assert {names.index(name) // 5 for name in found["val"]} == {8, 11, 13, 16}
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_cifar_fs_from_folders_and_as_features(tmp_path):
    for split, names in {"train": "abc", "val": "de", "test": "fg"}.items():
        photos(tmp_path / split, names)
    _, found = ready(CIFARFSDataModule, tmp_path)
    assert found == {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f", "g"]}
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data, _ = ready(CIFARFSDataModule, tmp_path, backbone=backbone)
    plain, _ = ready(CIFARFSDataModule, tmp_path)
    for one, other in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.allclose(one.support.inputs, other.support.inputs.mean((-1, -2)), atol=1e-5)


def test_mini_imagenet_from_its_pickles(tmp_path):
    whole = {}
    for seed, (split, names) in enumerate(WORDS.items()):
        whole[split] = images = random_images(3 * len(names), 84, seed)
        places = {name: list(range(3 * i, 3 * i + 3)) for i, name in enumerate(names)}
        content = {"image_data": images, "class_dict": dict(reversed(places.items()))}
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content))
    data, found = ready(MiniImageNetDataModule, tmp_path)
    assert found == WORDS
    for split, names in WORDS.items():
        for i, name in enumerate(names):
            expected = torch.from_numpy(whole[split][3 * i : 3 * i + 3]).permute(0, 3, 1, 2)
            assert torch.equal(pixels_of(data, split, name), expected)
    smaller, _ = ready(MiniImageNetDataModule, tmp_path, image_size=21)
    found, whole = (pixels_of(each, "val", "n05").float() for each in (smaller, data))
    expected = F.interpolate(whole, size=21, mode="bilinear", antialias=True)
    assert (found - expected).abs().max() <= 1.01  # Pillow rounds after each direction


def test_mini_imagenet_from_the_other_pickles_and_from_a_table(tmp_path):
    for split, names in WORDS.items():
        phase = "train_phase_train" if split == "train" else split
        content = {"data": list(random_images(2 * len(names), 84)), "labels": [i // 2 for i in range(2 * len(names))]}
        path = tmp_path / "a" / f"miniImageNet_category_split_{phase}.pickle"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content))
    data, found = ready(MiniImageNetDataModule, tmp_path / "a")
    assert {split: len(each) for split, each in found.items()} == {"train": 3, "val": 2, "test": 2}
    expected = torch.from_numpy(random_images(4, 84)[2:]).permute(0, 3, 1, 2)
    assert torch.equal(pixels_of(data, "test", "miniImageNet_category_split_test 1"), expected)
    root = tmp_path / "b"
    (root / "images").mkdir(parents=True)
    for split, names in WORDS.items():
        lines = ["filename,label"]
        for name in names:
            for i in range(2):
                Image.fromarray(random_images(1, 84, i)[0]).save(root / "images" / f"{name}{i}.png")
                lines.append(f"{name}{i}.png,{name}")
        (root / f"{split}.csv").write_text("\n".join(lines))
    data, found = ready(MiniImageNetDataModule, root)
    assert found == WORDS
    assert torch.equal(pixels_of(data, "val", "n04")[1], torch.from_numpy(random_images(1, 84, 1)[0]).permute(2, 0, 1))


def test_tiered_imagenet_from_its_pickles(tmp_path):
    images = {}
    for seed, (split, names) in enumerate(WORDS.items()):
        images[split] = random_images(2 * len(names), 84, seed)
        files = []
        for image in images[split]:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            array = np.frombuffer(file.getvalue(), np.uint8)
            files.append(array[:, None] if seed else array)  # older versions of OpenCV made columns
        (tmp_path / f"{split}_images_png.pkl").write_bytes(pickle.dumps(files))
        labels = {"label_specific": np.repeat(np.arange(len(names)), 2), "label_specific_str": names}
        (tmp_path / f"{split}_labels.pkl").write_bytes(pickle.dumps(labels))
    data, found = ready(TieredImageNetDataModule, tmp_path)
    assert found == WORDS
    assert torch.equal(pixels_of(data, "test", "n07"), torch.from_numpy(images["test"][2:]).permute(0, 3, 1, 2))


def test_fine_grained_data_in_torchvisions_layouts(tmp_path):
    names = [f"kind {i:02}" for i in range(12)]
    photos(tmp_path / "CUB_200_2011" / "images", names)
    photos(tmp_path / "dtd" / "dtd" / "images", names)
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    photos(data / "images", [""])
    (data / "images").mkdir(exist_ok=True)
    lines = []
    for i, name in enumerate(names):
        for j in range(2):
            Image.new("RGB", (20, 16), (20 * i, 0, 0)).save(data / "images" / f"{i:04}{j}.jpg")
            lines.append(f"{i:04}{j} {name}")
    (data / "images_variant_trainval.txt").write_text("\n".join(lines[::2]) + "\n")
    (data / "images_variant_test.txt").write_text("\n".join(lines[1::2]) + "\n")
    for name in ("cub-200", "dtd", "fgvc-aircraft"):
        module, found = ready(FineGrainedDataModule, tmp_path, name=name, image_size=12)
        assert {split: len(each) for split, each in found.items()} == {"train": 8, "val": 2, "test": 2}
        assert sorted(each for part in found.values() for each in part) == names
        assert next(iter(module.train_dataloader())).support.inputs.shape == (2, 2, 3, 12, 12)
    (split,) = (split for split, each in found.items() if "kind 07" in each)
    assert pixels_of(module, split, "kind 07").float().mean((0, 2, 3))[0] == pytest.approx(140, abs=3)
    _, other = ready(FineGrainedDataModule, tmp_path, name="dtd", image_size=12, split_seed=1)
    assert other != found


@pytest.mark.skipif(
    importlib.util.find_spec("scipy") is None, reason="scipy, which reads MATLAB files, is not installed"
)
def test_flowers(tmp_path):
    from scipy.io import savemat

    (tmp_path / "flowers-102" / "jpg").mkdir(parents=True)
    for i in range(1, 21):
        Image.new("RGB", (20, 16), (10 * i, 0, 0)).save(tmp_path / "flowers-102" / "jpg" / f"image_{i:05}.jpg")
    savemat(tmp_path / "flowers-102" / "imagelabels.mat", {"labels": np.arange(20)[None] // 2 + 1})
    data, found = ready(FineGrainedDataModule, tmp_path, name="flowers-102", image_size=12, split=(0.6, 0.2, 0.2))
    assert {split: len(each) for split, each in found.items()} == {"train": 6, "val": 2, "test": 2}
    (split,) = (split for split, each in found.items() if "003" in each)
    assert pixels_of(data, split, "003")[:, 0].float().mean((1, 2)).tolist() == pytest.approx([50, 60], abs=3)


def test_quickdraw_and_own_splits(tmp_path):
    (tmp_path / "quickdraw").mkdir()
    for i in range(12):
        drawings = np.random.default_rng(i).integers(0, 256, (1005 if i == 3 else 6, 784), dtype=np.uint8)
        np.save(tmp_path / "quickdraw" / f"thing {i}.npy", drawings)
    data, found = ready(FineGrainedDataModule, tmp_path, name="quickdraw", image_size=28)
    assert sum(map(len, found.values())) == 12
    assert sum(len(part) for part in data.datasets.values()) == 11 * 6 + 1000
    (split,) = (split for split, each in found.items() if "thing 4" in each)
    expected = np.load(tmp_path / "quickdraw" / "thing 4.npy").reshape(-1, 1, 28, 28)
    assert np.array_equal(pixels_of(data, split, "thing 4").numpy(), expected)
    for split, names in {"train": "abc", "val": "de", "test": "fg"}.items():
        photos(tmp_path / "own" / split, names)
    _, found = ready(FineGrainedDataModule, tmp_path / "own", name="cub-200", image_size=12)
    assert found == {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f", "g"]}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            CIFARFSDataModule,
            {},
            r"CIFAR-FS is not in .*cifar-100-python.*\{train,val,test\}/<class>.*Nothing is downloaded",
        ),
        (FC100DataModule, {}, r"FC100 is not in"),
        (MiniImageNetDataModule, {}, r"mini-ImageNet is not in .*mini-imagenet-cache-.*\.csv"),
        (TieredImageNetDataModule, {}, r"tiered-ImageNet is not in .*_images_png\.pkl"),
        *(
            (FineGrainedDataModule, {"name": name}, f"{name} is not in .*{layout}")
            for name, layout in [
                ("cub-200", "CUB_200_2011/images"),
                ("flowers-102", "imagelabels.mat"),
                ("fgvc-aircraft", "images_variant_"),
                ("dtd", "dtd/dtd/images"),
                ("quickdraw", "quickdraw/<class>.npy"),
            ]
        ),
    ],
)
def test_data_that_is_not_there_says_what_is_needed(tmp_path, kind, options, message):
    with pytest.raises(MissingFileError, match=message):
        ready(kind, tmp_path, **options)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_pickles_are_read_without_running_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (
        Evil(),
        {"image_data": Evil(), "class_dict": {}},
        [np.arange(3), {"a": Evil()}],
        io.BytesIO,
        json.loads,
    ):
        for protocol in (2, 4):
            Path("mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(content, protocol))
            with pytest.raises(
                DataError, match=r"mini-imagenet-cache-train\.pkl cannot be read as a pickle: it asks for"
            ):
                ready(MiniImageNetDataModule, tmp_path)
    encodes = b"c_codecs\nencode\n(Vx\nVzlib\ntR."
    Path("codec.pkl").write_bytes(encodes)
    with pytest.raises(DataError, match="encodes bytes as zlib"):
        read_arrays(Path("codec.pkl"))
    assert not Path("executed").exists()
    Path("broken.pkl").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(DataError, match=r"broken\.pkl cannot be read as a pickle"):
        read_arrays(Path("broken.pkl"))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickled_arrays_are_what_they_were(tmp_path, protocol):
    content = {
        "bytes": random_images(2, 4),
        "column": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "ragged": np.array([np.arange(2), np.arange(3)], dtype=object),
        "names": np.array(["a", "bc"]),
        "scalar": np.int64(5),
        "raw": b"\x00\xff\x80",
    }
    (tmp_path / "arrays.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_arrays(tmp_path / "arrays.pkl")
    assert found.keys() == content.keys()
    for key, value in content.items():
        if key == "ragged":
            assert all(map(np.array_equal, found[key], value))
        elif key == "raw":
            assert found[key] == value
        else:
            assert np.array_equal(found[key], value)
            assert found[key].dtype == value.dtype


def test_files_that_hold_something_else_are_named(tmp_path):
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps({"images": 1}))
    with pytest.raises(DataError, match=r"cache-train\.pkl holds no 'labels', but \['images'\]"):
        ready(MiniImageNetDataModule, tmp_path)
    content = {"image_data": random_images(3, 84), "class_dict": {"n01": [0, 1]}}
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="1 images belong to no class"):
        ready(MiniImageNetDataModule, tmp_path)
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(MissingFileError, match=r"CIFAR-100 is not complete: there is no file .*train"):
        ready(CIFARFSDataModule, tmp_path)
    with pytest.raises(ConfigurationError, match=r"name must be one of cub-200, .* got 'birds'"):
        FineGrainedDataModule("birds", "x")
    with pytest.raises(ConfigurationError, match="image_size"):
        MiniImageNetDataModule("x", image_size=0)
