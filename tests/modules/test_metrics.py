"""Metrics of each task, by the hook, and over all examples, by torchmetrics."""

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

from lightning_meta import EpisodicDataModule, MAMLModule, ProtoNetModule
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from tests.modules.test_maml import trainer


def vectors(**options):
    def classes(n):
        draw = torch.Generator().manual_seed(n)
        means, noise = torch.randn(n, 1, 4, generator=draw), torch.randn(n, 20, 4, generator=draw)
        return ClassDataset((means + 0.5 * noise).flatten(0, 1), torch.arange(n).repeat_interleave(20))

    sizes = {"n_way": 3, "k_shot": 1, "n_query": 4, "meta_batch_size": 4, "steps_per_epoch": 2}
    tasks = {"val_tasks": 4, "test_tasks": 7, "eval_batch_size": 3}
    return EpisodicDataModule(classes(10), classes(7), classes(8), **sizes | tasks | options)


def collection():
    return MetricCollection(
        {
            "f1": MulticlassF1Score(3, average="macro"),
            "of_class": MulticlassAccuracy(3, average=None),
            "confusion": MulticlassConfusionMatrix(3),
        }
    )


MODULES = {
    "maml": lambda **k: MAMLModule(nn.Linear(4, 3), 0.5, **k),
    "loop": lambda **k: MAMLModule(nn.Linear(4, 3), 0.5, task_parallel="loop", **k),
    "protonet": lambda **k: ProtoNetModule(nn.Linear(4, 3), **k),
}


@pytest.mark.parametrize("sizes", [{}, {"k_shot": (1, 3), "n_query": 2, "balanced": False}])
@pytest.mark.parametrize("name", MODULES)
def test_metrics_are_over_all_query_examples(name, sizes):
    torch.manual_seed(0)
    module, data, own = MODULES[name](metrics=collection()), vectors(**sizes), trainer()
    before = set(module.state_dict())
    row = own.test(module, data, verbose=False)[0]
    tasks = [task for batch in data.test_dataloader() for task in zip(*batch.query[1:], strict=True)] if sizes else None
    predictions = own.predict(module, data)
    if sizes:
        targets = torch.cat([targets[mask] for targets, mask in tasks])
        predictions = torch.cat([part for batch in predictions for part in batch])
    else:
        targets = torch.cat([batch.query.targets.flatten() for batch in data.test_dataloader()])
        predictions = torch.cat([batch.flatten(0, 1) for batch in predictions])
    confusion = multiclass_confusion_matrix(predictions, targets, 3)
    assert torch.equal(module.evaluation.results["test"]["confusion"], confusion)
    assert row["test/f1"] == pytest.approx(multiclass_f1_score(predictions, targets, 3, average="macro").item())
    for i in range(3):
        assert row[f"test/of_class_{i}"] == pytest.approx((confusion[i, i] / confusion[i].sum()).item())
    assert not any("confusion" in key for key in row)
    assert set(module.state_dict()) == before


def test_each_stage_and_each_epoch_is_measured_anew():
    module, data, own = MODULES["maml"](metrics=MulticlassConfusionMatrix(3)), vectors(), trainer(max_epochs=2)
    own.fit(module, data)
    own.test(module, data, verbose=False)
    sums = {stage: found["MulticlassConfusionMatrix"].sum() for stage, found in module.evaluation.results.items()}
    assert sums == {"val": 4 * 12, "test": 7 * 12}


def test_metrics_of_another_kind_are_refused():
    with pytest.raises(ArgumentTypeError, match=r"Metric or a MetricCollection.*task_metrics"):
        MODULES["maml"](metrics=multiclass_f1_score)
    with pytest.raises(ArgumentTypeError, match="Metric"):
        MODULES["maml"](metrics=MeanMetric)


class OfClass(MAMLModule):
    def task_metrics(self, predictions, targets):
        found = [multiclass_f1_score(p, t, 3, average=None) for p, t in zip(predictions, targets, strict=True)]
        return super().task_metrics(predictions, targets) | {"f1": torch.stack(found)}


def test_a_few_values_of_each_task_have_a_number_each():
    row = trainer().test(OfClass(nn.Linear(4, 3), 0.5), vectors(), verbose=False)[0]
    assert {f"test/query_f1_{i}{end}" for i in range(3) for end in ("", "_ci95", "_before")} <= set(row)
    curve = OfClass(nn.Linear(4, 3), 0.5, 2).adaptation_curve(next(iter(prepared().test_dataloader())))
    assert curve["query_f1_2"].shape == (3, 3)


def prepared():
    data = vectors()
    data.setup()
    return data


@pytest.mark.parametrize(
    "returned",
    [torch.tensor(0.5), 0.5, torch.zeros(2), torch.zeros(3, 3, 3), {"deep": torch.zeros(3)}],
    ids=["a mean", "a number", "another length", "a matrix", "a dict"],
)
def test_metrics_that_are_none_of_each_task_are_refused(returned):
    class Mine(MAMLModule):
        def task_metrics(self, predictions, targets):
            return {"mine": returned}

    with pytest.raises(ConfigurationError, match=r"Mine\.task_metrics must return one value for each task, \(3,\)"):
        trainer().test(Mine(nn.Linear(4, 3)), vectors(test_tasks=3))


def test_a_hook_that_returns_something_else_is_refused():
    class Metrics(MAMLModule):
        def task_metrics(self, predictions, targets):
            return torch.zeros(3)

    class Losses(MAMLModule):
        def task_losses(self, predictions, targets, mask=None):
            return super().task_losses(predictions, targets, mask).mean()

    batch = next(iter(prepared().test_dataloader()))
    with pytest.raises(ConfigurationError, match=r"Metrics\.task_metrics must return a dict"):
        Metrics(nn.Linear(4, 3)).meta_loss(batch)
    with pytest.raises(ConfigurationError, match=r"Losses\.task_losses must return the loss of each task, \(3,\)"):
        Losses(nn.Linear(4, 3)).meta_loss(batch)
