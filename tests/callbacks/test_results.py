"""What a test says of each task and class."""

import csv
import json

import pytest
import torch
import torch.nn.functional as F

from lightning_meta import Conv4, EpisodicDataModule, MAMLModule, ProtoNetModule
from lightning_meta.callbacks import TaskResults
from lightning_meta.datasets import glyphs
from tests.modules.test_maml import images, sinusoid_module, sinusoids, trainer


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run_test(tmp_path, module, data, **options):
    results = TaskResults(**options)
    run = trainer(tmp_path, callbacks=[results])
    run.test(module, data, verbose=False)
    return results, run


@pytest.mark.parametrize(
    "make", [lambda: MAMLModule(Conv4(5, hidden=4), 0.1), lambda: ProtoNetModule(Conv4(5, hidden=4))]
)
def test_tasks_and_classes_are_those_of_the_predictions(tmp_path, make, capsys):
    """Against the predictions of `predict`, and the data's own indices."""
    module, data = make(), images(eval_batch_size=4)
    _, run = run_test(tmp_path, module, data, json=str(tmp_path / "more.json"))
    folder = tmp_path / "results" / "current"
    tasks, classes = rows_of(folder / "tasks.csv"), rows_of(folder / "classes.csv")
    predictions = torch.cat(trainer(tmp_path).predict(module, data))
    targets = torch.cat([batch.query.targets for batch in data.test_dataloader()])
    right = predictions.argmax(-1) == targets
    assert [float(row["query_accuracy"]) for row in tasks] == pytest.approx(right.float().mean(1).tolist())
    names = glyphs(range(20, 28)).classes
    found = data.tasks["test"].indices(range(10))
    for number, row in enumerate(tasks):
        of_task = [names[glyphs(range(20, 28)).targets[place]] for place in found[number, :, 0]]
        assert row["classes"] == "|".join(of_task)
        mine = [each for each in classes if each["task"] == str(number)]
        assert [each["class"] for each in mine] == of_task
        for label, each in enumerate(mine):
            of_class = targets[number] == label
            assert int(each["queries"]) == of_class.sum() == 2
            assert float(each["accuracy"]) == pytest.approx(right[number][of_class].float().mean().item())
            loss = F.cross_entropy(predictions[number][of_class], targets[number][of_class]).item()
            assert float(each["loss"]) == pytest.approx(loss, rel=1e-4)
    confusion = rows_of(folder / "confusion.csv")
    assert sum(int(row["queries"]) for row in confusion) == targets.numel()
    assert sum(int(row["queries"]) for row in confusion if row["class"] == row["predicted"]) == right.sum()
    summary = json.loads((folder / "results.json").read_text())
    assert summary == json.loads((tmp_path / "more.json").read_text())
    of_accuracy = summary["rows"][0]["metrics"]["query_accuracy"]
    assert of_accuracy["mean"] == pytest.approx(run.callback_metrics["test/query_accuracy"].item())
    assert of_accuracy["ci95"] == pytest.approx(run.callback_metrics["test/query_accuracy_ci95"].item())
    printed = capsys.readouterr().out
    assert f"{100 * of_accuracy['mean']:.1f} ± {100 * of_accuracy['ci95']:.1f} %" in printed
    assert not module.evaluation.wants_predictions


def test_several_ways_and_shots_are_rows(tmp_path, capsys):
    data = images(n_way=5, test_n_way=[3, 5], test_k_shot=[1, 3])
    results, _ = run_test(tmp_path, ProtoNetModule(Conv4(5, hidden=4)), data)
    expected = [("3", "1"), ("3", "3"), ("5", "1"), ("5", "3")]
    assert [(row.sizes["way"], row.sizes["shot"]) for row in results.rows] == expected
    assert {row["row"] for row in rows_of(tmp_path / "results/current/tasks.csv")} == {
        "3-way 1-shot", "3-way 3-shot", "5-way 1-shot", "5-way 3-shot",
    }  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == 7


@pytest.mark.parametrize("task_parallel", ["vmap", "loop", 3])
def test_classes_that_a_task_has_not_are_not_counted(tmp_path, task_parallel):
    module = MAMLModule(Conv4(5, hidden=4), 0.1, task_parallel=task_parallel)
    results, _ = run_test(tmp_path, module, images(n_way=(2, 5), k_shot=(1, 3)))
    (row,) = results.rows
    assert {len(classes) for classes in row.task_classes} == {2, 3, 4, 5}
    assert len(row.classes) == sum(map(len, row.task_classes))
    of_task = [found for found in row.classes if found.task == 3]
    expected = sum(found.accuracy * found.queries for found in of_task) / sum(found.queries for found in of_task)
    assert row.values["query_accuracy"][3].item() == pytest.approx(expected)


def test_regression_has_tasks_only(tmp_path, capsys):
    results, _ = run_test(tmp_path, sinusoid_module(), sinusoids(), folder=str(tmp_path / "own"))
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["results.json", "tasks.csv"]
    assert results.rows[0].sizes == {"support": "10", "queries": "10"}
    assert len(rows_of(tmp_path / "own/tasks.csv")) == 20
    assert "batch statistics" not in capsys.readouterr().out


def test_a_callback_gets_the_values_of_each_task(tmp_path):
    import lightning.pytorch as pl

    seen = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            seen["train"] = outputs

        def on_validation_batch_end(self, trainer, module, outputs, *_):
            seen["val"] = outputs

    trainer(tmp_path, callbacks=[Look()]).fit(MAMLModule(Conv4(5, hidden=4), 0.1), images(val_tasks=4))
    assert seen["train"]["query_accuracy"].shape == seen["val"]["query_accuracy"].shape == (4,)
    torch.testing.assert_close(seen["train"]["loss"], seen["train"]["query_loss"].mean())
    assert "predictions" not in seen["val"]


def test_data_loaders_of_a_users_own(tmp_path):
    """Without a data module the tasks have no names."""
    data = images()
    data.setup()
    results = TaskResults()
    trainer(tmp_path, callbacks=[results]).test(
        MAMLModule(Conv4(5, hidden=4), 0.1), dataloaders=data.test_dataloader(), verbose=False
    )
    assert len(results.rows[0].values["query_accuracy"]) == 10
    assert not results.rows[0].classes
    assert json.loads((tmp_path / "results/current/results.json").read_text())["data"] == "data loaders"


def test_a_data_module_without_names_gives_numbers(tmp_path):
    sets = [torch.utils.data.TensorDataset(torch.rand(40, 1, 8, 8), torch.arange(40) // 5) for _ in range(3)]
    for each in sets:
        each.targets = each.tensors[1]
    data = EpisodicDataModule(*sets, n_way=2, n_query=2, test_tasks=3)
    results, _ = run_test(tmp_path, ProtoNetModule(torch.nn.Flatten()), data)
    assert {name for names in results.rows[0].task_classes for name in names} <= set("01234567")
