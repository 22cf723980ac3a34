"""Omniglot: a small copy made here for what can go wrong, the real data for the rest."""

import time
import warnings
import zipfile

import pytest
import torch
from PIL import Image

from lightning_meta import OmniglotDataModule
from lightning_meta.datasets import omniglot

ALPHABETS = {
    "images_background": ["Aleph", "Beth", "Gimel", "He", "Heth", "Vav", "Zayin"],
    "images_evaluation": ["Yod"],
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two characters in each of eight alphabets; character k of a part is a black bar in column k."""
    monkeypatch.setattr(omniglot, "CHARACTERS", {"images_background": 14, "images_evaluation": 2})
    for part, alphabets in ALPHABETS.items():
        for a, alphabet in enumerate(alphabets):
            for c in range(2):
                folder = tmp_path / "omniglot-py" / part / alphabet / f"character{c + 1:02d}"
                folder.mkdir(parents=True)
                for d in range(20):
                    image = Image.new("1", (105, 105), 1)
                    image.paste(0, (5 * (2 * a + c), d, 5 * (2 * a + c) + 5, 105))
                    image.save(folder / f"{d:02d}.png")
    return tmp_path


def test_ink_is_one_and_the_second_load_comes_from_the_cache(small, monkeypatch):
    images, names = omniglot.load_omniglot(small)
    assert images.shape == (16, 20, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert names[3] == "images_background/Beth/character02"
    columns = images[:14, 0, 0].float().sum(1).argmax(1)  # where the ink is
    expected = (torch.arange(14) * 5 + 2.5) * 28 / 105
    assert (columns - expected).abs().max() <= 1
    assert images[3, 0].max() > 200
    assert images[3, 0, 0, :, 25].max() == 0
    monkeypatch.setattr(omniglot, "_read_image", lambda *_: pytest.fail("images were read again"))
    assert torch.equal(omniglot.load_omniglot(small)[0], images)


def test_the_cache_follows_the_images_and_the_size(small):
    before = omniglot.load_omniglot(small)[0]
    assert omniglot.load_omniglot(small, 14)[0].shape[-1] == 14
    Image.new("1", (105, 105), 0).save(small / "omniglot-py/images_background/Aleph/character01/00.png")
    after = omniglot.load_omniglot(small)[0]
    assert after[0, 0].min() == 255
    assert torch.equal(after[1:], before[1:])


def test_a_broken_cache_is_made_anew(small):
    images = omniglot.load_omniglot(small)[0]
    (cache,) = (small / "omniglot-py").glob("*.pt")
    cache.write_bytes(cache.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is made anew"):
        assert torch.equal(omniglot.load_omniglot(small)[0], images)
    torch.save(torch.zeros(3), cache)
    with pytest.warns(UserWarning, match="of another version"):
        assert torch.equal(omniglot.load_omniglot(small)[0], images)


def _one_pixel(content):
    content["images"][3, 4, 0, 5, 6] += 1


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (_one_pixel, "has been changed"),
        (lambda content: content.update(digest="0"), "has been changed"),
        (lambda content: content.update(key="0"), "of another version"),
        (lambda content: content.update(images=content["images"].float()), "does not hold the images"),
        (lambda content: content.update(images=omniglot.Path("x")), "is made anew"),  # an object: never unpickled
    ],
)
def test_a_cache_that_was_tampered_with_is_never_trusted(small, tamper, reason):
    images = omniglot.load_omniglot(small)[0]
    (cache,) = (small / "omniglot-py").glob("*.pt")
    content = torch.load(cache, weights_only=True)
    tamper(content)
    torch.save(content, cache)
    with pytest.warns(UserWarning, match=reason):
        assert torch.equal(omniglot.load_omniglot(small)[0], images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(omniglot.load_omniglot(small)[0], images)


def test_a_cache_of_another_version_is_made_anew(small, monkeypatch):
    images = omniglot.load_omniglot(small)[0]
    monkeypatch.setattr(omniglot, "_CACHE_FORMAT", omniglot._CACHE_FORMAT + 1)
    with pytest.warns(UserWarning, match="of another version"):
        assert torch.equal(omniglot.load_omniglot(small)[0], images)


@pytest.mark.parametrize("genuine", [True, False])
def test_archives_are_checked_and_cannot_write_outside_their_root(tmp_path, monkeypatch, genuine):
    """What is downloaded is unpacked only if its checksum is that of the published archive, and stays in its folder."""
    import torchvision.datasets.utils

    root = tmp_path / "a" / "root"

    def fetch(url, target, *_, **__):
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("../../../escaped.txt", "out")
            archive.writestr(f"{tmp_path}/absolute.txt", "out")
            archive.writestr("images_background/inside.txt", "in")

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", fetch)
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    if genuine:
        fetch(None, tmp_path / "copy.zip")
        monkeypatch.setattr(torchvision.datasets.utils, "check_md5", lambda path, md5: zipfile.is_zipfile(path))
    with pytest.raises(RuntimeError, match=f"There is no Omniglot under {root}, and downloading it failed"):
        omniglot.download(root)
    written = [path for path in tmp_path.rglob("*.txt")]
    assert bool(written) == genuine
    assert all(root in path.parents for path in written)


def test_a_folder_that_cannot_be_written_to_is_good_enough(small, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.warns(UserWarning, match="could not be cached.*No space left"):
        assert omniglot.load_omniglot(small)[0].shape[0] == 16
    assert not list((small / "omniglot-py").glob("*.pt"))
    assert not list((small / "omniglot-py").glob("*.tmp"))


def test_missing_and_incomplete_data_are_named(small, tmp_path_factory):
    drawing = small / "omniglot-py/images_background/Gimel/character02/07.png"
    content = drawing.read_bytes()
    drawing.unlink()
    with pytest.raises(ValueError, match=r"Gimel/character02 has 19 drawings instead of 20"):
        omniglot.load_omniglot(small)
    drawing.write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"07\.png cannot be read"):
        omniglot.load_omniglot(small)
    drawing.write_bytes(content)
    alphabet = small / "omniglot-py/images_evaluation/Yod"
    (alphabet / "character01").rename(small / "elsewhere")
    with pytest.raises(ValueError, match=r"images_evaluation has 1 characters instead of 2"):
        omniglot.load_omniglot(small)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match="images_background"):
        OmniglotDataModule(str(empty), download=False).setup()


def test_downloads_with_torchvision_where_the_data_is_not(tmp_path, monkeypatch):
    import torchvision.datasets

    asked = []

    class Fake:
        def __init__(self, root, background, download):
            asked.append((root, background, download))
            if len(asked) == 3:
                raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "Omniglot", Fake)
    omniglot.download(tmp_path)
    assert asked == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    with pytest.raises(RuntimeError, match=r"no network.*omniglot-py"):
        omniglot.download(tmp_path)


def test_data_that_is_there_is_not_downloaded(small, monkeypatch):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, "Omniglot", lambda *_, **__: pytest.fail("downloaded"))
    OmniglotDataModule(str(small)).prepare_data()


def test_alphabet_split_keeps_alphabets_apart(small):
    names = omniglot.load_omniglot(small)[1]
    split = omniglot.split_characters(names, "alphabet")
    alphabets = {part: {names[i].split("/")[1] for i in chosen} for part, chosen in split.items()}
    assert alphabets["test"] == {"Yod"}
    assert len(alphabets["val"]) == 5
    assert alphabets["train"] == set(ALPHABETS["images_background"]) - alphabets["val"]


def test_rotations_are_new_classes_in_training_only(small):
    images, names = omniglot.load_omniglot(small)
    turned = omniglot.characters(images, names, [2, 5], rotations=True)
    assert len(turned) == 2 * 4 * 20
    assert turned.classes[5] == f"{names[5]}/rot180"
    assert torch.equal(turned.inputs[5 * 20], torch.flip(images[5, 0], (-2, -1)))
    data = OmniglotDataModule(str(small), split="alphabet", n_way=2, k_shot=1, n_query=1)
    data.setup()
    assert len(data.datasets["train"].classes) == 4 * 4
    assert len(data.datasets["val"].classes) == 10


@pytest.mark.parametrize(("name", "value"), [("split", "vinyals"), ("image_size", 0)])
def test_bad_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        OmniglotDataModule("root", **{name: value})


def test_real_omniglot(omniglot_root):
    data = OmniglotDataModule(str(omniglot_root), n_query=15, meta_batch_size=4)
    data.prepare_data()
    start = time.process_time()
    data.setup()
    assert time.process_time() - start < 2
    assert {split: len(d.classes) for split, d in data.datasets.items()} == {"train": 4400, "val": 100, "test": 423}
    task = next(iter(data.test_dataloader()))
    assert task.query.inputs.shape == (8, 75, 1, 28, 28)
    assert task.query.inputs.min() >= 0
    assert 0.9 < task.query.inputs.max() <= 1
    assert 0.03 < task.query.inputs.mean() < 0.15  # ink is 1
    alphabet = OmniglotDataModule(str(omniglot_root), split="alphabet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alphabet.setup()
    counts = {split: len(d.classes) for split, d in alphabet.datasets.items()}
    assert counts["test"] == 659
    assert counts["train"] // 4 + counts["val"] == 964
