"""Tasks that vary in size: which classes and examples they have."""

import math
import time
from collections import Counter

import numpy as np
import pytest
import torch

from lightning_meta.datamodules import ClassTasks
from lightning_meta.datamodules.sampling import unequal_shots
from lightning_meta.datasets import ClassDataset
from lightning_meta.randomness import uniforms
from tests.datamodules.test_class_tasks import Plain, numbered

SIZES = [2, 3, 5, 8, 13, 21, 34, 40]


def of_sizes(sizes=tuple(SIZES)):
    """Example i of class c, which has sizes[c] examples, holds the number 100 c + i + 1."""
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return ClassDataset(100 * targets.unsqueeze(1) + torch.cat([torch.arange(n) for n in sizes])[:, None] + 1, targets)


VARIED = {
    "ranges": lambda data: ClassTasks(data, "train", (2, 5), (1, 4), 3, min_examples=7),
    "small classes": lambda data: ClassTasks(data, "train", 4, 3, 5, min_examples=2),
    "unbalanced": lambda data: ClassTasks(data, "train", (2, 6), (1, 9), 4, balanced=False, min_examples=2),
    "unbalanced, one way": lambda data: ClassTasks(data, "train", 5, 7, 2, balanced=False, min_examples=3),
}
varied = pytest.mark.parametrize("kind", VARIED)


def examples(task, number):
    """For each class of a task its support and its query examples, after checks of the layout."""
    found = []
    for part in task:
        count = int(part.mask[number].sum())
        assert part.mask[number].tolist() == [True] * count + [False] * (part.mask.shape[1] - count)
        labels = part.targets[number, :count].tolist()
        assert labels == sorted(labels)
        classes = {label: [] for label in range(labels[-1] + 1)}
        for label, value in zip(labels, part.inputs[number, :count, 0].tolist(), strict=True):
            classes[label].append(value)
        found.append(classes)
    support, query = found
    assert support.keys() == query.keys()
    return [(support[label], query[label]) for label in support]


def test_way_and_shot_are_drawn_uniformly():
    task = ClassTasks(numbered(), "train", (2, 6), (1, 4), 1).tasks(range(4000))
    pairs = Counter()
    for number in range(4000):
        classes = examples(task, number)
        shots = {len(support) for support, _ in classes}
        assert len(shots) == 1
        assert all(len(query) == 1 for _, query in classes)
        pairs[(len(classes), *shots)] += 1
    assert len(pairs) == 20
    assert sum((n - 200) ** 2 / 200 for n in pairs.values()) < 43.8  # the 0.999 quantile for 19 degrees of freedom


def test_classes_and_examples_are_drawn_uniformly():
    task = ClassTasks(numbered(), "train", (2, 6), (1, 4), 1).tasks(range(4000))
    seen = Counter(task.query.inputs[task.query.mask].flatten().tolist())
    expected = int(task.query.mask.sum()) / 48
    assert len(seen) == 48
    assert sum((n - expected) ** 2 / expected for n in seen.values()) < 85


@varied
def test_the_examples_of_a_class_are_its_own_and_distinct(kind):
    task = VARIED[kind](of_sizes()).tasks(range(300))
    for number in range(300):
        classes = [(support, query) for support, query in examples(task, number)]
        own = [{int(value - 1) // 100 for value in support + query} for support, query in classes]
        assert all(len(which) == 1 for which in own)
        assert len(set.union(*own)) == len(classes)
        assert all(len({*support, *query}) == len(support) + len(query) for support, query in classes)


@varied
def test_a_task_depends_on_its_number_alone(kind):
    data = of_sizes()
    together = VARIED[kind](data).tasks(range(40))
    shuffled = VARIED[kind](data).tasks([31, 7, 2**50, 12])
    for number in range(40):
        assert examples(VARIED[kind](data).tasks([number]), 0) == examples(together, number)
    assert examples(shuffled, 1) == examples(together, 7)
    assert examples(VARIED[kind](data).tasks([2**50]), 0) == examples(shuffled, 2)
    plain = VARIED[kind](Plain(data)).tasks(range(40))
    assert torch.equal(plain.query.inputs["x"], together.query.inputs)


@varied
def test_batches_are_padded_with_zeros_and_always_have_masks(kind):
    tasks = VARIED[kind](of_sizes())
    task = tasks.tasks(range(20))
    for part in task:
        assert part.mask.dtype == torch.bool
        assert part.mask.shape == part.targets.shape == part.inputs.shape[:2]
        assert part.mask.sum(1).max() == part.mask.shape[1]
        assert part.inputs[~part.mask].numel()
        assert not part.inputs[~part.mask].any()
        assert not part.targets[~part.mask].any()
        assert part.inputs[part.mask].all()
    for number in range(20):  # a task alone needs no padding
        for part in tasks.tasks([number]):
            assert part.mask.all()


@varied
def test_indices_are_where_the_examples_lie(kind):
    data = of_sizes()
    tasks = VARIED[kind](data)
    task, found = tasks.tasks(range(20)), tasks.indices(range(20))
    for number in range(20):
        for row, (support, query) in zip(found[number], examples(task, number), strict=False):
            assert data.inputs[row[row >= 0], 0].tolist() == support + query
        assert (found[number, len(examples(task, number)) :] == -1).all()


@varied
def test_data_of_varied_tasks_can_lie_on_another_device(kind):
    """On the device "meta", which has shapes only."""
    tasks = VARIED[kind](of_sizes())
    found, expected = tasks.to(torch.device("meta")).tasks([0, 1]), tasks.tasks([0, 1])
    for part, own in zip(found, expected, strict=True):
        assert part.inputs.device.type == "meta"
        assert part.inputs.shape == own.inputs.shape
        assert torch.equal(part.mask, own.mask)


def test_fixed_tasks_have_no_masks():
    for tasks in (
        ClassTasks(numbered(), "train", 3, 2, 2),
        ClassTasks(numbered(), "train", 3, 2, 2, min_examples=4),  # every class that is used has enough
    ):
        task = tasks.tasks([0, 1])
        assert task.support.mask is None
        assert task.query.mask is None
    assert ClassTasks(numbered(), "train", (3, 3), 2, 2).tasks([0]).support.mask.all()


def test_what_small_classes_give():
    tasks = ClassTasks(of_sizes(), "train", 5, (1, 4), 6, min_examples=3)
    task = tasks.tasks(range(200))
    met = set()
    for number in range(200):
        shot = min(4, 1 + int(uniforms(0, "train", [number], 2)[0, 1] * 4))
        for support, query in examples(task, number):
            size = SIZES[int(support[0] - 1) // 100]
            met.add(size)
            assert len(support) == min(shot, size - 1)
            assert len(query) == min(6, size - len(support))
    assert met == set(SIZES) - {2}


def by_hand(sizes, beta, alpha, least, most, n_query):
    """Meta-Dataset's sampling, in the words of the paper."""
    queries = max(1, min(n_query, min(math.floor(0.5 * size) for size in sizes)))
    total = sum(math.ceil(beta * min(most, size - queries)) for size in sizes)
    weights = [math.exp(a) * size for a, size in zip(alpha, sizes, strict=True)]
    shares = [weight / sum(weights) for weight in weights]
    beyond = max(0, total - len(sizes) * least)
    return queries, [
        min(math.floor(share * beyond) + least, most, size - queries) for share, size in zip(shares, sizes, strict=True)
    ]


def test_unequal_shots_of_one_task():
    # q = min(10, 8 // 2) = 4; |S| = ceil(0.5 * 4) + ceil(0.5 * 16) + ceil(0.5 * 30) = 2 + 8 + 15 = 25; with alpha 0
    # the shares are 8/68, 20/68 and 40/68 of 25 - 3 = 22, which is 2.6, 6.5 and 12.9.
    shots, queries = unequal_shots(np.array([[8, 20, 40]]), np.array([0.5]), np.zeros((1, 3)), (1, 30), 10)
    assert queries.tolist() == [[4, 4, 4]]
    assert shots.tolist() == [[3, 7, 13]]
    shots, _ = unequal_shots(np.array([[8, 20, 40]]), np.array([0.5]), np.zeros((1, 3)), (1, 10), 10)
    # |S| = 2 + 5 + 5 = 12, shares of 9: 1.06, 2.6, 5.3
    assert shots.tolist() == [[2, 3, 6]]
    shots, queries = unequal_shots(np.array([[2, 20, 0]]), np.array([1e-9]), np.zeros((1, 3)), (3, 9), 10)
    assert queries.tolist() == [[1, 1, 1]]
    assert shots[0, :2].tolist() == [1, 3]  # at least K_min where there is that much


@pytest.mark.parametrize(("way", "shot", "n_query"), [((2, 6), (1, 9), 4), (4, 20, 10), ((3, 8), (2, 5), 1)])
def test_unbalanced_tasks_are_drawn_as_in_meta_dataset(way, shot, n_query):
    least, most = (1, shot) if isinstance(shot, int) else shot
    low, high = (way, way) if isinstance(way, int) else way
    tasks = ClassTasks(of_sizes(), "val", way, shot, n_query, seed=3, balanced=False, min_examples=2)
    task = tasks.tasks(range(150))
    unequal = 0
    for number in range(150):
        classes = examples(task, number)
        sizes = [SIZES[int(support[0] - 1) // 100] for support, _ in classes]
        random = uniforms(3, "val", [number], 2 + 2 * high)[0]
        assert len(classes) == low + int(random[0] * (high - low + 1))
        alpha = math.log(0.5) + (math.log(2) - math.log(0.5)) * random[2 + high : 2 + high + len(classes)]
        queries, shots = by_hand(sizes, 1 - random[1], alpha, least, most, n_query)
        assert [len(query) for _, query in classes] == [queries] * len(classes)
        assert [len(support) for support, _ in classes] == shots
        unequal += len(set(shots)) > 1
    assert unequal > 50


def test_the_numbers_of_meta_dataset_itself():
    data = of_sizes([25 + 17 * c % 600 for c in range(80)])
    tasks = ClassTasks(data, "train", (5, 50), (1, 100), 10, balanced=False, min_examples=20)
    start = time.process_time()
    task = tasks.tasks(range(16))
    assert time.process_time() - start < 2
    shots = [len(support) for number in range(16) for support, _ in examples(task, number)]
    assert min(shots) >= 1
    assert 40 < max(shots) <= 100


@pytest.mark.parametrize(
    ("way", "shot", "keywords", "message"),
    [
        ((5, 20), 1, {}, r"n_way=\(5, 20\) classes, but the data set has 8\. Lower n_way"),
        (
            7,
            1,
            {"min_examples": 4},
            r"n_way=7 classes, but .* has 6 with at least min_examples=4 examples\. Lower n_way",
        ),
        (2, (1, 4), {}, r"k_shot \+ n_query = 4 \+ 3 = 7 examples .* class 0 has 2.*min_examples=2 uses every class"),
        ((5, 3), 1, {}, r"n_way must be a range \(smallest, largest\), got \(5, 3\)"),
        (5, (0, 2), {}, r"k_shot must be at least 1, got \(0, 2\)"),
        (5, 1, {"min_examples": 1}, r"min_examples must be at least 2, .* got 1"),
    ],
)
def test_what_the_data_cannot_give_is_refused(way, shot, keywords, message):
    with pytest.raises(ValueError, match=message):
        ClassTasks(of_sizes(), "train", way, shot, 3, **keywords)


def test_classes_left_out_are_said_once(caplog):
    with caplog.at_level("INFO"):
        tasks = ClassTasks(of_sizes(), "val", 2, 1, 2, min_examples=6)
    assert [record.message for record in caplog.records] == [
        "val: 3 of 8 classes have fewer than min_examples=6 examples and are left out."
    ]
    values = tasks.tasks(range(100)).support.inputs
    assert set((values.flatten() // 100).tolist()) == {3, 4, 5, 6, 7}
