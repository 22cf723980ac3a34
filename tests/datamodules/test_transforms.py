"""Transforms of support and query examples."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from lightning_meta import EpisodicDataModule
from lightning_meta.cli.main import main
from lightning_meta.datamodules import ClassTasks
from lightning_meta.datamodules.sampling import Places
from lightning_meta.datamodules.transforms import Transforms
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import ArgumentTypeError, DataError
from lightning_meta.task import tensors_of
from lightning_meta.testing import check_tasks
from tests.cli.test_main import QUIET
from tests.datamodules.test_base import as_rank

LABELS = torch.arange(8).repeat_interleave(6)
FIXED = v2.Compose([v2.Resize(6, antialias=True), v2.Grayscale(3), v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.1])])
RANDOM = v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)])


def photos(size=8):
    generator = torch.Generator().manual_seed(0)
    return ClassDataset(torch.randint(0, 256, (48, 3, size, size), dtype=torch.uint8, generator=generator), LABELS)


class Noise(nn.Module):
    """Adds what each of the three global generators gives."""

    def forward(self, x):
        return x + torch.rand(1) + np.random.rand() + random.random()


def module(**options):
    sizes = {"n_way": 3, "k_shot": 2, "n_query": 2, "meta_batch_size": 4, "steps_per_epoch": 3, "test_tasks": 4}
    data = EpisodicDataModule(photos(), None, photos(), **sizes | options)
    data.setup()
    return data


@pytest.mark.parametrize("shape", [(3, 2), ((2, 4), (1, 3))], ids=["fixed", "ranges"])
@pytest.mark.parametrize(
    "transform", [FIXED, RANDOM, v2.Compose([RANDOM, FIXED, Noise()])], ids=["same", "random", "both"]
)
def test_a_transformed_task_is_a_function_of_its_number(transform, shape):
    check_tasks(ClassTasks(photos(), "train", *shape, 2, transform=transform, query_transform=transform))


def test_a_transform_of_a_whole_batch_is_that_of_each_example():
    tasks = ClassTasks(photos(), "train", 3, 2, 2, transform=FIXED, query_transform=FIXED)
    calls = []
    hook = FIXED.transforms[0].register_forward_hook(lambda _, args, out: calls.append(args[0].shape))
    found = tasks.tasks(range(5))
    hook.remove()
    assert calls == [(30, 3, 8, 8)] * 2
    plain = ClassTasks(photos(), "train", 3, 2, 2).tasks(range(5))
    for part, other in zip(found, plain, strict=True):
        for number in range(5):
            for place in range(6):
                expected = FIXED(other.inputs[number, place].float() / 255)
                assert torch.allclose(part.inputs[number, place], expected, atol=1e-6)


def test_a_random_transform_is_drawn_for_each_example_and_leaves_the_global_generators_alone():
    data = ClassDataset(torch.full((48, 1, 4, 4), 51, dtype=torch.uint8), LABELS)
    tasks = ClassTasks(data, "train", 3, 2, 2, transform=Noise(), query_transform=Noise())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = tasks.tasks(range(20))
    assert torch.equal(torch.get_rng_state(), state)
    drawn = torch.cat([part.inputs.amax((2, 3, 4)).flatten() - 0.2 for part in found])
    assert torch.equal(found.support.inputs.amin((2, 3, 4)), found.support.inputs.amax((2, 3, 4)))
    assert len(drawn.unique()) == len(drawn) == 240
    assert abs(drawn.mean() - 1.5) < 0.1  # three uniform numbers
    assert abs(drawn.std() - 0.5) < 0.06
    other = ClassTasks(data, "train", 3, 2, 2, seed=1, transform=Noise(), query_transform=Noise()).tasks(range(20))
    assert not torch.equal(other.support.inputs, found.support.inputs)
    first = torch.cat([Transforms(Noise(), None, "val", 0)([torch.zeros(2, 1)] * 2, *_two_places())[0]])
    assert first[0] != first[1]


def _two_places():
    place = Places(np.array([[3, 4]]), np.array([[0, 1]]))
    return [place, place], [7]


def test_flips_and_crops_are_those_of_torchvision():
    found = ClassTasks(photos(), "train", 3, 2, 2, transform=v2.RandomHorizontalFlip()).tasks(range(20))
    plain = ClassTasks(photos(), "train", 3, 2, 2).tasks(range(20))
    images = plain.support.inputs.float() / 255
    kept, flipped = ((found.support.inputs == x).all(-1).all(-1).all(-1) for x in (images, images.flip(-1)))
    assert bool((kept | flipped).all())
    assert 40 < int(kept.sum()) < 80
    assert torch.equal(found.query.inputs, plain.query.inputs.float() / 255)


def test_workers_ranks_and_evaluation_see_the_same():
    options = {"train_transform": RANDOM, "eval_transform": RANDOM}
    data, again, workers = module(**options), module(**options), module(**options, num_workers=2)
    for loader in ("train_dataloader", "test_dataloader"):
        expected = [tensors_of(batch) for batch in getattr(data, loader)()]
        for other in (again, workers):
            for batch, tensors in zip(getattr(other, loader)(), expected, strict=True):
                assert all(map(torch.equal, tensors_of(batch), tensors))


def test_support_and_query_in_training_and_evaluation_have_transforms_of_their_own():
    class To(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return torch.full_like(x, self.value)

    def seen(**options):
        data = module(**options)
        batches = (next(iter(loader())) for loader in (data.train_dataloader, data.test_dataloader))
        return [round(float(part.inputs.max()), 3) for batch in batches for part in batch]

    names = ("train_transform", "train_query_transform", "eval_transform", "eval_query_transform")
    assert seen(**{name: To(i) for i, name in enumerate(names, 2)}) == [2, 3, 4, 5]
    assert seen(train_transform=To(2), eval_transform=To(3)) == [2, 2, 3, 3]
    assert seen(train_transform=To(2), train_query_transform=nn.Identity())[0] == 2
    assert all(value <= 1 for value in seen(train_transform=To(2), train_query_transform=nn.Identity())[1:])


def test_padding_is_not_transformed():
    data = ClassTasks(photos(), "train", (2, 4), (1, 3), 2, transform=v2.Normalize([0.0] * 3, [1e-3] * 3))
    support = data.tasks(range(6)).support
    assert not support.mask.all()
    assert support.inputs[~support.mask].abs().max() == 0
    assert support.inputs[support.mask].amax() > 900


def test_a_moved_data_set_keeps_what_is_random_on_the_cpu(monkeypatch):
    moves = []
    monkeypatch.setattr(
        "lightning_meta.datamodules.labelled.Reader.to", lambda self, device: moves.append(device) or self
    )
    for transform in (RANDOM, FIXED, None):
        ClassTasks(photos(), "train", 3, 2, 2, transform=transform).to(torch.device("cuda"))
    assert moves == [torch.device("cuda")] * 2


def test_transforms_in_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text("""
trainer: {max_epochs: 1}
model:
  class_path: MAMLModule
  init_args: {network: {class_path: Conv4, init_args: {hidden: 4, normalize: {mean: [0.1], std: [0.3]}}}}
data:
  class_path: GlyphsDataModule
  init_args:
    train_classes: 8
    val_classes: 5
    test_classes: 5
    n_query: 3
    meta_batch_size: 2
    steps_per_epoch: 1
    val_tasks: 1
    train_transform:
      class_path: torchvision.transforms.v2.Compose
      init_args:
        transforms:
        - {class_path: torchvision.transforms.v2.RandomCrop, init_args: {size: 20, padding: 2}}
        - {class_path: torchvision.transforms.v2.RandomHorizontalFlip}
    eval_query_transform: {class_path: torchvision.transforms.v2.Pad, init_args: {padding: 2, fill: 1.0}}
""")
    command = ["fit", "--config", str(tmp_path / "run.yaml"), *QUIET]
    data = main([*command, "--trainer.default_root_dir", str(tmp_path / "run")]).datamodule
    train, test = next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))
    assert [part.inputs.shape[-1] for part in (*train, *test)] == [20, 20, 28, 32]
    again = main(["fit", "--config", str(tmp_path / "run" / "config.yaml"), *QUIET, "--trainer.max_epochs", "2"])
    assert torch.equal(next(iter(again.datamodule.train_dataloader())).support.inputs, train.support.inputs)
    assert again.model.network.body[0].std.item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (v2.RandomCrop, ArgumentTypeError, r"eval_transform must be something to call with an example.*RandomCrop"),
        ("flip", ArgumentTypeError, r"eval_transform must be something to call .* got 'flip'"),
        (
            v2.RandomCrop(30),
            DataError,
            r"test: the transform RandomCrop.* fails on inputs \(3, 8, 8\) of torch.float32",
        ),
        (v2.ToPILImage(), ArgumentTypeError, r"must make tensors of one size.*what it returns, a Image"),
        (lambda x: x[:, : int(torch.randint(2, 6, ()))], ArgumentTypeError, r"must make tensors of one size"),
    ],
    ids=["class", "word", "too large", "no tensor", "sizes"],
)
def test_transforms_that_do_not_fit_say_why(transform, error, message):
    with pytest.raises(error, match=message):
        next(iter(module(eval_transform=transform).test_dataloader()))


def test_training_goes_on_at_the_same_augmented_task():
    whole = [tensors_of(batch) for batch in module(train_transform=RANDOM, steps_per_epoch=6).train_dataloader()]
    data = module(train_transform=RANDOM)
    data.trainer = as_rank(0, 1, 4).trainer
    for batch, expected in zip(data.train_dataloader(), whole[4:], strict=False):
        assert all(map(torch.equal, tensors_of(batch), expected))


def test_an_empty_transform_of_query_examples_is_none():
    """An empty `Sequential` is false."""
    data = EpisodicDataModule(train_transform=nn.Flatten(), train_query_transform=nn.Sequential())
    assert isinstance(data.transforms["train"][1], nn.Sequential)
