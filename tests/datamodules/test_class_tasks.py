"""N-way K-shot tasks."""

import random
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from lightning_meta import EpisodicDataModule
from lightning_meta.datamodules import ClassTasks
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import DataError


def numbered(classes=8, each=6, start=0):
    """Example i of class c holds the number 100 c + i."""
    targets = torch.arange(classes).repeat_interleave(each)
    inputs = (100 * targets + torch.arange(each).repeat(classes)).float().unsqueeze(1) + start
    return ClassDataset(inputs, targets)


class Plain(Dataset):
    """A data set that gives examples one by one, from a list of targets."""

    def __init__(self, data):
        self.data, self.targets = data, data.targets.tolist()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return {"x": self.data[index][0]}, self.targets[index]


def test_tasks_are_n_way_k_shot_without_repeats():
    task = ClassTasks(numbered(), "train", n_way=5, k_shot=2, n_query=3).tasks(range(200))
    support, query = task.support.inputs[..., 0], task.query.inputs[..., 0]
    assert support.shape == (200, 10)
    assert query.shape == (200, 15)
    for s, q, labels in zip(support, query, task.support.targets, strict=True):
        assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert len({*s.tolist(), *q.tolist()}) == 25
        classes = (s // 100).tolist()[::2]
        assert len(set(classes)) == 5
        assert (s // 100).tolist() == [c for c in classes for _ in range(2)]
        assert (q // 100).tolist() == [c for c in classes for _ in range(3)]


def test_every_class_label_and_example_is_drawn_equally_often():
    task = ClassTasks(numbered(), "train", n_way=4, k_shot=1, n_query=1).tasks(range(6000))
    seen = Counter(task.support.inputs.flatten().tolist())
    assert len(seen) == 48
    chi_square = sum((n - 500) ** 2 / 500 for n in seen.values())
    assert chi_square < 85  # about the 0.999 quantile for 47 degrees of freedom
    first = Counter((task.support.inputs[:, 0, 0] // 100).tolist())
    assert sum((n - 750) ** 2 / 750 for n in first.values()) < 24.4


def test_a_task_is_a_function_of_seed_split_and_number():
    data = numbered()

    def draw(numbers, split="train", seed=0):
        return ClassTasks(data, split, 3, 1, 2, seed).tasks(numbers).query.inputs

    together = draw([5, 6, 7])
    assert torch.equal(draw([6])[0], together[1])
    assert not torch.equal(draw([6], split="val")[0], together[1])
    assert not torch.equal(draw([6], seed=1)[0], together[1])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", 3, 2, 2, 0), [[0, 4, 3, 1], [13, 15, 14, 12], [47, 42, 44, 46]]),
        (
            ("val", 5, 1, 4, 7),
            [[40, 38, 39, 41, 36], [14, 15, 13, 16, 12], [18, 21, 23, 22, 19], [11, 9, 8, 7, 10], [43, 44, 42, 46, 47]],
        ),
        (("test", 2, 3, 3, 2**63), [[45, 43, 46, 47, 44, 42], [12, 14, 13, 16, 17, 15]]),
    ],
)
def test_fixed_tasks_are_those_that_results_were_published_for(arguments, expected):
    tasks = ClassTasks(numbered(), *arguments)
    assert tasks.indices([0, 2**40])[1].tolist() == expected
    assert tasks.tasks([2**40]).support.inputs.flatten().tolist() == [
        100.0 * (i // 6) + i % 6 for row in expected for i in row[: arguments[2]]
    ]


def test_ways_of_holding_data_give_the_same_tasks():
    data = numbered()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = ClassDataset(data.inputs[order], data.targets[order])
    tensor = TensorDataset(data.inputs[order], data.targets[order])
    tensor.targets = data.targets[order]
    # A Subset of a Subset picks the shuffled order out of a larger, reversed one.
    padded = ClassDataset(torch.cat([data.inputs, data.inputs + 1000]), torch.cat([data.targets, data.targets + 50]))
    reverse = Subset(padded, list(range(len(padded)))[::-1])
    subset = Subset(reverse, [len(padded) - 1 - i for i in order])
    expected = ClassTasks(shuffled, "val", 3, 2, 2).tasks([0, 1, 9])
    for other in (tensor, subset):
        found = ClassTasks(other, "val", 3, 2, 2).tasks([0, 1, 9])
        assert torch.equal(found.support.inputs, expected.support.inputs)
        assert torch.equal(found.query.inputs, expected.query.inputs)
    plain = ClassTasks(Plain(shuffled), "val", 3, 2, 2).tasks([0, 1, 9])
    assert torch.equal(plain.support.inputs["x"], expected.support.inputs)


def test_a_data_set_that_transforms_its_tensor_is_read_by_its_own_getitem():
    class Negative(ClassDataset):
        def __getitem__(self, index):
            return -self.inputs[index], int(self.targets[index])

    class Doubled(Subset):
        def __getitem__(self, index):
            return 2 * super().__getitem__(index)[0], 0

        __getitems__ = None

    data = numbered()
    expected = ClassTasks(data, "val", 3, 2, 2).tasks([4]).support.inputs
    negative = Negative(data.inputs, data.targets)
    assert torch.equal(ClassTasks(negative, "val", 3, 2, 2).tasks([4]).support.inputs, -expected)
    doubled = Doubled(data, range(len(data)))
    assert torch.equal(ClassTasks(doubled, "val", 3, 2, 2).tasks([4]).support.inputs, 2 * expected)


def test_classes_of_different_sizes():
    data = ClassDataset(torch.arange(9.0).unsqueeze(1), [7, 7, 7, 7, 7, 2, 2, 2, 2])
    task = ClassTasks(data, "train", n_way=2, k_shot=2, n_query=2).tasks(range(300))
    drawn = Counter(torch.cat([task.support.inputs, task.query.inputs], 1).flatten().tolist())
    assert set(drawn) == set(map(float, range(9)))
    assert all(drawn[float(i)] == 300 for i in range(5, 9))


def bad_images():
    class Images(Plain):
        def __getitem__(self, index):
            return object(), 0

    return Images(numbered())


def unreadable():
    class Unreadable(Plain):
        def __getitem__(self, index):
            raise OSError("disk on fire")

    return Unreadable(numbered())


def without(**attributes):
    data = Plain(numbered())
    for name, value in attributes.items():
        setattr(data, name, value)
    return data


@pytest.mark.parametrize(
    ("dataset", "shape", "message"),
    [
        (numbered(), (9, 1, 1), "n_way=9 classes, but the data set has 8"),
        (numbered(), (5, 3, 4), r"k_shot \+ n_query = 3 \+ 4 = 7 examples .* class 0 has 6.* and 3 more"),
        (without(targets=[0.5] * 48), (5, 1, 1), "one integer for each example.*float64"),
        (without(targets=[0] * 3), (5, 1, 1), "48 examples but 3 targets"),
        (without(targets=[[0]] * 48), (5, 1, 1), "one integer for each example"),
        (TensorDataset(torch.zeros(4, 1)), (5, 1, 1), "no attribute `targets`"),
    ],
    ids=["ways", "examples", "floats", "length", "shape", "none"],
)
def test_data_that_cannot_give_such_tasks_is_refused(dataset, shape, message):
    with pytest.raises(ValueError, match=f"train: .*{message}"):
        ClassTasks(dataset, "train", *shape)


def test_the_class_that_is_too_small_is_named():
    data = ClassDataset(torch.zeros(5, 1), [0, 0, 0, 1, 1], ["cat", "dog"])
    with pytest.raises(ValueError, match="class dog has 2"):
        ClassTasks(data, "val", 2, 1, 2)


def test_examples_that_cannot_be_read_or_stacked_are_named():
    with pytest.raises(RuntimeError, match=r"train: example \d+ of the data set cannot be read: disk on fire"):
        ClassTasks(unreadable(), "train", 2, 1, 1).tasks([0])
    with pytest.raises(TypeError, match=r"inputs of type object cannot be stacked.*ToTensor"):
        ClassTasks(bad_images(), "train", 2, 1, 1).tasks([0])


def test_the_file_that_cannot_be_read_is_named(tmp_path):
    for i in range(12):
        folder = tmp_path / f"class{i // 4}"
        folder.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(folder / f"{i}.png")
    (tmp_path / "class1" / "6.png").write_bytes(b"no image")
    folder = ImageFolder(str(tmp_path), ToTensor())
    with pytest.raises(DataError, match=r"train: example 2 of the data set, .*class1.6\.png, cannot be read"):
        ClassTasks(Subset(folder, range(4, 12)), "train", 2, 2, 2).tasks(range(5))


class WithValue(Plain):
    """Its inputs are dicts with something else than tensors."""

    value: Any = None

    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return inputs | {"more": {"value": self.value}}, target


@pytest.mark.parametrize("value", ["a text", b"bytes"])
def test_values_that_cannot_be_divided_among_tasks_are_refused(value):
    data = WithValue(numbered())
    data.value = value
    with pytest.raises(TypeError, match=rf"inputs\['more'\]\['value'\]\[0\], a {type(value).__name__}\. Leave it out"):
        ClassTasks(data, "train", 2, 1, 1).tasks([0])
    data.value = 3.0
    assert ClassTasks(data, "train", 2, 1, 1).tasks([0]).support.inputs["more"]["value"].shape == (1, 2)


def test_a_data_set_that_returns_inputs_alone_is_refused():
    class Alone(Plain):
        def __getitem__(self, index):
            return self.data[index][0]

    with pytest.raises(TypeError, match=r"of Alone is a Tensor\. A data set must return \(input, target\)"):
        ClassTasks(Alone(numbered()), "train", 2, 1, 1).tasks([0])


def test_ten_thousand_tasks_a_second():
    data = ClassDataset(torch.randint(0, 255, (22000, 1, 28, 28), dtype=torch.uint8), np.arange(1100).repeat(20))
    module = EpisodicDataModule(data, n_way=5, k_shot=1, n_query=1, meta_batch_size=32, steps_per_epoch=400)
    module.setup()
    rates = []
    for _ in range(3):
        start = time.process_time()
        tasks = sum(len(task.support.targets) for task in module.train_dataloader())
        rates.append(tasks / (time.process_time() - start))
    assert max(rates) >= 10_000


def test_data_can_lie_on_another_device():
    """On the device "meta", which has shapes only."""
    data = ClassDataset(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.arange(10).repeat_interleave(4))
    tasks = ClassTasks(data, "train", 5, 1, 2)
    moved = tasks.to(torch.device("meta"))
    batch = moved.tasks([0, 1])
    assert batch.query.inputs.device.type == "meta"
    assert batch.query.inputs.shape == tasks.tasks([0, 1]).query.inputs.shape
    assert batch.query.inputs.dtype == torch.uint8
    assert tasks.tasks([0]).query.inputs.device.type == "cpu"
    assert moved.to(torch.device("meta")) is moved


class Jittered(Plain):
    """Its transform draws random numbers of all generators."""

    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        drawn = torch.rand(1).item() + 10 * np.random.rand() + 100 * random.random()
        return inputs | {"drawn": torch.tensor(drawn)}, target


def test_random_transforms_follow_from_the_task_and_the_example():
    tasks = ClassTasks(Jittered(numbered()), "val", 3, 2, 2, seed=2**64 - 1)
    before = torch.get_rng_state()
    first = tasks.tasks([4, 5, 6])
    torch.manual_seed(3)
    again = tasks.tasks([6, 4])
    for part, other in zip(first, again, strict=True):
        assert torch.equal(part.inputs["drawn"][[2, 0]], other.inputs["drawn"])
    assert len(set(torch.cat([part.inputs["drawn"] for part in first], 1).flatten().tolist())) == 3 * 12
    assert not torch.equal(first.support.inputs["drawn"], tasks.tasks([7, 8, 9]).support.inputs["drawn"])
    others = (
        ClassTasks(tasks.dataset, "val", 3, 2, 2, seed=1),
        ClassTasks(tasks.dataset, "test", 3, 2, 2, seed=2**64 - 1),
    )
    for other in others:
        assert not set(other.tasks([4]).support.inputs["drawn"].flatten().tolist()) & set(
            first.support.inputs["drawn"].flatten().tolist()
        )
    torch.set_rng_state(before)
    tasks.tasks([1])
    assert torch.equal(torch.get_rng_state(), before)


def test_random_transforms_of_workers_and_of_another_run_are_the_same():
    batches = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        data = EpisodicDataModule(
            Jittered(numbered()),
            n_way=3,
            k_shot=2,
            n_query=2,
            meta_batch_size=2,
            steps_per_epoch=3,
            num_workers=workers,
        )
        data.setup()
        batches.append([batch.query.inputs["drawn"] for batch in data.train_dataloader()])
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))


@pytest.mark.parametrize("n_way", [3, (2, 4)])
def test_inputs_of_several_tensors_are_gathered_at_once(n_way):
    """As those of a data set that is read example by example."""
    data = numbered()
    several = {"x": data.inputs, "more": (data.inputs[:, 0] + 0.5,)}
    held = Subset(ClassDataset(several, data.targets), range(6, 48))
    found = ClassTasks(held, "train", n_way, k_shot=2, n_query=3).tasks(range(5))
    plain = ClassTasks(Subset(Plain(data), range(6, 48)), "train", n_way, k_shot=2, n_query=3).tasks(range(5))
    for part, expected in zip(found, plain, strict=True):
        assert torch.equal(part.inputs["x"], expected.inputs["x"])
        real = torch.ones_like(part.targets, dtype=torch.bool) if part.mask is None else part.mask
        assert torch.equal(part.inputs["more"][0][real], part.inputs["x"][..., 0][real] + 0.5)
        assert part.inputs["more"][0].shape == part.targets.shape


def test_inputs_of_several_tensors_move_to_a_device_together():
    data = numbered()
    tasks = ClassTasks(ClassDataset({"x": data.inputs, "y": data.inputs}, data.targets), "train", 3, 1, 1)
    moved = tasks.to(torch.device("meta"))
    assert moved is not tasks
    inputs = moved.tasks([0, 1]).support.inputs
    assert {tensor.device.type for tensor in inputs.values()} == {"meta"}
    assert inputs["y"].shape == (2, 3, 1)
    assert moved.to(torch.device("meta")) is moved
