"""Figures."""

from types import SimpleNamespace

import pytest
import torch
from matplotlib.image import imread
from torch import nn
from torchvision.transforms import v2

from lightning_meta import Examples, Normalize, Task
from lightning_meta.callbacks import plot_adaptation, plot_episode
from lightning_meta.callbacks.figures import without_normalization
from lightning_meta.errors import ConfigurationError
from lightning_meta.task import map_tensors
from tests.conftest import image_tasks


def red_pixels(path):
    image = imread(path)[..., :3]
    return int(((image[..., 0] > 0.9) & (image[..., 1] < 0.1) & (image[..., 2] < 0.1)).sum())


def test_the_episode_frames_wrong_predictions(tmp_path):
    task = map_tensors(lambda t: t[0], image_tasks(n_way=3, k_shot=1, n_query=4))
    right = torch.nn.functional.one_hot(task.query.targets, 3).float()
    wrong = right.roll(1, 0)  # one of each class's four is taken for another
    for name, predictions in {"right": right, "wrong": wrong, "none": None}.items():
        plot_episode(task, tmp_path / f"{name}.png", predictions)
    assert red_pixels(tmp_path / "right.png") == red_pixels(tmp_path / "none.png") == 0
    assert red_pixels(tmp_path / "wrong.png") > 300


def padded(examples, to):
    """The same examples with padding that would be seen: black images, labels out of range."""
    more = to - len(examples.targets)
    mask = torch.arange(to) < len(examples.targets)
    inputs = torch.cat([examples.inputs, torch.ones(more, *examples.inputs.shape[1:], dtype=examples.inputs.dtype)])
    return Examples(inputs, torch.cat([examples.targets, torch.full((more,), 7)]), mask)


def test_padding_is_not_drawn(tmp_path):
    task = map_tensors(lambda t: t[0], image_tasks(n_way=3, k_shot=1, n_query=4))
    wrong = torch.nn.functional.one_hot(task.query.targets, 3).float().roll(1, 0)
    larger = Task(padded(task.support, 5), padded(task.query, 15))
    plot_episode(task, tmp_path / "task.png", wrong)
    plot_episode(larger, tmp_path / "padded.png", torch.cat([wrong, torch.randn(3, 3)]))
    plot_episode(larger, tmp_path / "unpadded predictions.png", wrong)
    expected = imread(tmp_path / "task.png")
    assert (imread(tmp_path / "padded.png") == expected).all()
    assert (imread(tmp_path / "unpadded predictions.png") == expected).all()
    with pytest.raises(ConfigurationError, match="There are 4 predictions for 12 query examples"):
        plot_episode(larger, tmp_path / "x.png", wrong[:4])


def test_classes_may_have_different_numbers_of_examples(tmp_path):
    """The grid is as wide as the class with the most."""

    def examples(*counts):
        targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))
        return Examples(torch.rand(len(targets), 1, 8, 8), targets)

    plot_episode(Task(examples(1, 3, 2), examples(2, 0, 4)), tmp_path / "unequal.png")
    plot_episode(Task(examples(3, 3, 3), examples(4, 4, 4)), tmp_path / "equal.png")
    unequal, equal = imread(tmp_path / "unequal.png"), imread(tmp_path / "equal.png")
    assert unequal.shape == equal.shape
    assert (unequal < 1).sum() < 0.75 * (equal < 1).sum()
    plot_episode(Task(examples(1, 0), examples(25, 0)), tmp_path / "many.png")
    with pytest.raises(ConfigurationError, match="no examples to draw"):
        plot_episode(Task(examples(), examples()), tmp_path / "x.png")


def test_the_adaptation_curve_is_drawn(tmp_path):
    plot_adaptation({"a": torch.rand(10, 4), "b": torch.rand(10, 6)}, tmp_path / "curve.png")
    assert imread(tmp_path / "curve.png").shape[0] > 100


def test_normalized_images_keep_their_colours(tmp_path):
    plain = image_tasks(tasks=1, n_way=2, k_shot=2, n_query=2, channels=3, dtype=torch.float32)
    plain = map_tensors(lambda t: t[0], plain)
    pixels = torch.cat([part.inputs for part in plain])
    least, most = pixels.amin((0, 2, 3)).view(3, 1, 1), pixels.amax((0, 2, 3)).view(3, 1, 1)
    plain = Task(*(part._replace(inputs=(part.inputs - least) / (most - least)) for part in plain))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.1]).view(3, 1, 1)
    normalized = Task(*(part._replace(inputs=(part.inputs - mean) / std) for part in plain))
    for name, task in {"plain": plain, "normalized": normalized}.items():
        plot_episode(task, tmp_path / f"{name}.png")
    one, other = (imread(tmp_path / f"{name}.png") for name in ("plain", "normalized"))
    assert abs(one - other).max() < 0.01


def test_what_a_data_modules_transform_normalized_is_undone(tmp_path):
    """Exactly: scaling by the range of values would not have these colours back."""
    plain = map_tensors(lambda t: t[0], image_tasks(tasks=1, channels=3, dtype=torch.float32))
    plain = Task(*(part._replace(inputs=part.inputs.sigmoid() * 0.5 + 0.2) for part in plain))
    normalize = v2.Compose([nn.Identity(), v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.1])])
    support = plain.support._replace(inputs=normalize(plain.support.inputs))
    data = SimpleNamespace(transforms={"test": (normalize, None)})
    found = without_normalization(Task(support, plain.query), data)
    assert torch.allclose(found.support.inputs, plain.support.inputs, atol=1e-6)
    assert torch.equal(found.query.inputs, plain.query.inputs)
    assert without_normalization(plain, None) == plain
    layer = Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.1])
    data = SimpleNamespace(transforms={"test": (nn.Sequential(layer), layer)})
    both = Task(*(part._replace(inputs=layer(part.inputs)) for part in plain))
    for part, expected in zip(without_normalization(both, data), plain, strict=True):
        assert torch.allclose(part.inputs, expected.inputs, atol=1e-6)
