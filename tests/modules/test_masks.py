"""Tasks of different sizes in one batch: padding changes nothing, whatever stands in it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import Examples, MAMLModule, Task
from lightning_meta.functional.losses import losses_of_tasks
from lightning_meta.functional.mini_batches import mini_batch
from lightning_meta.metrics import mean_and_ci95
from tests.conftest import relative_error, vector_tasks
from tests.modules.test_contracts import FixedDataModule, every_algorithm, made, meta_gradient, trainer

SIZES = [(2, [1, 7]), (3, [2, 3, 1]), (5, [1, 1, 4, 2, 1])]
QUERIES = [2, 3, 1]


def single(i, channels=1, size=8):
    """Task i without padding."""
    generator = torch.Generator().manual_seed(i)
    ways, shots = SIZES[i]

    def examples(counts):
        targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
        inputs = torch.randn(len(targets), channels, size, size, generator=generator, dtype=torch.float64)
        return Examples(inputs.unsqueeze(0), targets.unsqueeze(0))

    return Task(examples(shots), examples([QUERIES[i]] * ways))


def padded(tasks, inputs=math.nan, targets=-7):
    """These tasks in one batch."""

    def together(parts):
        longest = max(part.targets.shape[1] for part in parts)
        missing = [longest - part.targets.shape[1] for part in parts]
        return Examples(
            torch.cat([F.pad(p.inputs, (0,) * 6 + (0, n), value=inputs) for p, n in zip(parts, missing, strict=True)]),
            torch.cat([F.pad(p.targets, (0, n), value=targets) for p, n in zip(parts, missing, strict=True)]),
            torch.cat([F.pad(torch.ones_like(p.targets), (0, n)).bool() for p, n in zip(parts, missing, strict=True)]),
        )

    return Task(together([task.support for task in tasks]), together([task.query for task in tasks]))


SINGLES = [single(i) for i in range(3)]
BATCH = padded(SINGLES)


def padded_module(name, way, norm="batch", **kwargs):
    torch.manual_seed(0)
    return made(name, norm, n_way=5, task_parallel=way, **kwargs)


@every_algorithm
@pytest.mark.parametrize("way", ["vmap", "loop", 2])
@pytest.mark.parametrize("norm", ["batch", "batch_tracked"])
def test_a_padded_batch_has_the_mean_of_the_single_tasks_meta_gradients(name, way, norm):
    module = padded_module(name, way, norm)
    loss, found = meta_gradient(module, BATCH)
    losses, singles = zip(*(meta_gradient(module, task) for task in SINGLES), strict=True)
    assert loss.item() == pytest.approx(sum(value.item() for value in losses) / 3, rel=1e-12)
    expected = [sum(parts) / 3 for parts in zip(*singles, strict=True)]
    assert any(gradient.any() for gradient in expected)
    assert relative_error(found, expected) < 1e-10


@every_algorithm
@pytest.mark.parametrize("transductive", [True, False])
def test_evaluation_of_a_padded_batch_is_that_of_the_single_tasks(name, transductive):
    module = padded_module(name, "vmap", transductive=transductive).eval()

    def evaluated(task):
        (outcome,) = list(module.task_map(module.algorithm.evaluate, module.problem(task)))
        return {"query_loss": outcome.losses, **outcome.metrics}

    found, singles = evaluated(BATCH), [evaluated(task) for task in SINGLES]
    assert "query_accuracy" in found
    for key, values in found.items():
        expected = torch.cat([one[key] for one in singles])
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-10)
        for one, other in zip(mean_and_ci95(values), mean_and_ci95(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_through_a_trainer_predictions_are_each_tasks_own(tmp_path):
    module = padded_module("maml", "auto")
    data = FixedDataModule(BATCH, steps_per_epoch=2)
    run = trainer(tmp_path, max_epochs=1, precision="64-true", num_sanity_val_steps=0)
    run.fit(module, data)
    found = [prediction for batch in run.predict(module, data) for prediction in batch]
    assert [len(prediction) for prediction in found[:3]] == [4, 9, 5]
    for prediction, (ways, _), task in zip(found, SIZES, SINGLES, strict=False):
        assert torch.isinf(prediction[:, ways:]).all()
        assert torch.isfinite(prediction[:, :ways]).all()
        adapted = module.adapt_to(task.support.inputs[0], task.support.targets[0], transductive=True)
        torch.testing.assert_close(adapted(task.query.inputs[0]), prediction)


def test_a_perfect_fit_reads_one():
    module = MAMLModule(nn.Linear(6, 3).double())
    tasks = vector_tasks()
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    right = F.one_hot(tasks.query.targets, 3).double() * 30
    wrong = torch.where(mask.unsqueeze(-1), right, right.roll(1, -1))
    assert module.task_metrics(wrong, tasks.query.targets, mask)["accuracy"].tolist() == [1] * 4
    assert module.task_losses(wrong, tasks.query.targets, mask).max() < 1e-9
    ignored = torch.where(mask, tasks.query.targets, -100)
    assert module.task_metrics(wrong, ignored)["accuracy"].tolist() == [1] * 4


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3, 4, 5]).double()), None])
def test_hooks_without_a_mask_see_each_tasks_real_examples_alone(loss):
    seen = []

    class Own(MAMLModule):
        def task_losses(self, predictions, targets):
            seen.append(tuple(targets.shape))
            return super().task_losses(predictions, targets)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double()
    found = [meta_gradient(kind(net, 0.1, loss=loss), BATCH)[1] for kind in (MAMLModule, Own)]
    assert relative_error(*found) < 1e-12
    assert set(seen) == {(1, 8), (1, 6), (1, 9), (1, 4), (1, 5)}


def test_mini_batches_of_a_padded_set_are_those_of_the_set_alone():
    for step in range(5):
        found = mini_batch(BATCH.support, step, size=4, draw=3)
        for i, task in enumerate(SINGLES):
            alone = mini_batch(task.support, step, size=4, draw=3)
            assert torch.equal(found.inputs[i][found.mask[i]], alone.inputs[0])


def test_what_cannot_be_masked_is_refused_by_name():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(64, 5)

        def forward(self, x):
            return self.head(self.norm(x.reshape(-1, 8)).reshape(len(x), -1))

    with pytest.raises(RuntimeError, match=r"Batch normalization gets 72 things .* of 9 examples"):
        MAMLModule(Positions().double(), 0.1, task_parallel="vmap").meta_loss(BATCH)


@pytest.mark.parametrize("name", ["protonet", "r2d2", "metaoptnet", "maml", "reptile"])
@pytest.mark.parametrize("transductive", [True, False])
def test_one_set_may_be_masked_and_the_other_not(name, transductive):
    """A support set without padding, and query sets with some."""
    tasks = padded([SINGLES[1], SINGLES[1]])
    short = tasks.query._replace(mask=tasks.query.mask.clone())
    short.mask[1, 4:] = False
    short.inputs[1, 4:] = math.nan
    module = padded_module(name, "vmap", transductive=transductive).eval()
    values = {}
    for kind, support in (("masked", tasks.support), ("not", tasks.support._replace(mask=None))):
        (outcome,) = list(module.task_map(module.algorithm.evaluate, module.problem(Task(support, short))))
        values[kind] = outcome.losses
    assert torch.isfinite(values["not"]).all()
    torch.testing.assert_close(values["not"], values["masked"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("trailing", [(), (1,), (2, 3)])
@pytest.mark.parametrize("loss", [F.mse_loss, lambda p, t: (p - t).square().mean()])
def test_masked_regression_of_any_shape(trailing, loss):
    generator = torch.Generator().manual_seed(0)
    predictions, targets = torch.randn(2, 2, 5, *trailing, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False, False], [True, True, True, True, False]])
    found = losses_of_tasks(loss, predictions, targets, mask)
    expected = [F.mse_loss(p[m], t[m]) for p, t, m in zip(predictions, targets, mask, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))
