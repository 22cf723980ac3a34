"""Mean and interval over tasks."""

import numpy as np
import pytest
import torch

from lightning_meta.metrics import TaskStatistics, mean_and_ci95


def test_against_numpy_whatever_the_batches():
    values = torch.rand(601, generator=torch.Generator().manual_seed(0))
    for size in (1, 8, 601):
        metric = TaskStatistics()
        for part in values.split(size):
            metric.update({"query_loss": 2 * part, "query_accuracy": part})
        mean, ci95 = metric.compute()["query_accuracy"]
        reference = values.double().numpy()
        assert mean.item() == pytest.approx(reference.mean(), rel=1e-12)
        assert ci95.item() == pytest.approx(1.96 * reference.std(ddof=1) / np.sqrt(601), rel=1e-12)
        assert metric.compute()["query_loss"][0].item() == pytest.approx(2 * reference.mean(), rel=1e-12)


def test_one_task_has_no_interval():
    mean, ci95 = mean_and_ci95(torch.tensor([0.5]))
    assert mean == 0.5
    assert ci95.isnan()


def test_reset_forgets():
    metric = TaskStatistics()
    metric.update({"a": torch.ones(2)})
    metric.reset()
    metric.update({"b": torch.zeros(3)})
    assert metric.compute()["b"][0] == 0


def test_batches_must_have_the_same_metrics():
    metric = TaskStatistics()
    metric.update({"a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"had \['a'\], got \['b'\]"):
        metric.update({"b": torch.ones(2)})
