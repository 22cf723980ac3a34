"""Results as files, and two runs on the same tasks."""

import json
from collections import Counter

import pytest
import torch
from scipy import stats

from lightning_meta.cli.compare import comparison
from lightning_meta.errors import ConfigurationError, DataError, MissingFileError
from lightning_meta.metrics import ClassResult, RowResult, compare_tasks, read_tasks, results_table, save_results


def row(accuracies, name="", classes=("a", "b")):
    values = torch.as_tensor(accuracies, dtype=torch.float64)
    sizes, metrics = {"way": "2", "shot": "1", "queries": "5"}, {"query_accuracy": values, "query_loss": 1 - values}
    confusion = Counter({("a", "b"): 1, ("a", "a"): 4})
    found = [ClassResult(0, "a", 5, 0.8, 0.3)]
    return RowResult(name, sizes, "support set", metrics, 0.01, [list(classes)] * len(values), found, confusion)


def saved(folder, *rows, **about):
    save_results(rows, {"data": "Photos", "tasks_of": {"seed": 0}} | about, folder)
    return read_tasks(folder)


def test_they_are_read_as_they_were_written(tmp_path):
    table = saved(tmp_path / "deep" / "run", row([0.25, 0.5, 1 / 3]))
    assert table.tasks == [("", str(i), "a|b") for i in range(3)]
    assert table.values["query_accuracy"].tolist() == [0.25, 0.5, 1 / 3]
    assert (tmp_path / "deep/run/classes.csv").read_text() == "row,task,class,queries,accuracy,loss\n,0,a,5,0.8,0.3\n"
    assert (tmp_path / "deep/run/confusion.csv").read_text() == "row,class,predicted,queries\n,a,a,4\n,a,b,1\n"
    assert json.loads((tmp_path / "deep/run/results.json").read_text())["rows"][0]["tasks"] == 3


def test_the_difference_is_that_of_a_paired_test(tmp_path):
    """The interval leaves out 0 where SciPy's paired t-test says so: with many tasks it is the normal one."""
    torch.manual_seed(0)
    first = torch.rand(2000).double()
    for shift in (0.0, 0.002, 0.02):
        second = first + shift + 0.1 * torch.randn(2000)
        tables = [saved(tmp_path / name, row(values)) for name, values in (("a", first), ("b", second))]
        (found,) = compare_tasks(*tables)
        test = stats.ttest_rel(second.numpy(), first.numpy())
        low, high = test.confidence_interval(0.95)
        assert found.difference[0] == pytest.approx((low + high) / 2, abs=1e-9)
        assert found.difference[1] == pytest.approx((high - low) / 2, rel=2e-3)
        assert (abs(found.difference[0]) > found.difference[1]) == (test.pvalue < 0.05)


def test_rows_are_compared_by_themselves(tmp_path):
    first = saved(tmp_path / "a", row([0.1, 0.2], "1-shot"), row([0.5, 0.7], "5-shot"))
    second = saved(tmp_path / "b", row([0.2, 0.3], "1-shot"), row([0.5, 0.7], "5-shot"))
    one, five = compare_tasks(first, second)
    assert (one.row, five.row) == ("1-shot", "5-shot")
    assert one.difference == pytest.approx((0.1, 0.0), abs=1e-12)
    assert five.difference == (0, 0)
    loss = compare_tasks(first, second, "query_loss")[0]
    assert loss.difference[0] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("other", "about", "reason"),
    [
        (row([0.1, 0.2, 0.3]), {}, "one has 2 tasks, the other 3"),
        (row([0.1, 0.2], classes=("a", "c")), {}, "task 0 is"),
        (row([0.1, 0.2]), {"tasks_of": {"seed": 1}}, "seed"),
        (row([0.1, 0.2]), {"data": "Drawings"}, "Drawings"),
    ],
)
def test_other_tasks_are_refused(tmp_path, other, about, reason):
    first, second = saved(tmp_path / "a", row([0.1, 0.2])), saved(tmp_path / "b", other, **about)
    with pytest.raises(ConfigurationError, match=reason):
        compare_tasks(first, second)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="lightning-meta test"):
        read_tasks(tmp_path)
    table = saved(tmp_path, row([0.1, 0.2]))
    with pytest.raises(ConfigurationError, match=r"no f1 .* query_accuracy, query_loss"):
        compare_tasks(table, table, "f1")
    for broken in ("", "row,task\n", "row,task,classes,query_loss\n,0,a,much\n"):
        (tmp_path / "tasks.csv").write_text(broken)
        with pytest.raises(DataError, match="holds no results"):
            read_tasks(tmp_path)


def test_the_table_has_a_line_for_each_row():
    lines = results_table([row([0.5, 0.5], "1-shot"), row([1.0, 0.9], "5-shot")]).splitlines()
    assert len(lines) == 3
    assert "50.0 ± 0.0 %" in lines[1]
    assert lines[0].index("query loss") == lines[1].index("0.500 ± 0.000") == lines[2].index("0.050 ± 0.098")


def test_nothing_is_sure_of_a_single_task(tmp_path):
    tables = [saved(tmp_path / name, row([value])) for name, value in (("a", 0.1), ("b", 0.9))]
    assert "*" not in comparison(["a", "b"], tables, None)


def test_one_metric_is_chosen_for_all(tmp_path):
    """That which every run has."""
    first, second = saved(tmp_path / "a", row([0.1, 0.4])), saved(tmp_path / "b", row([0.2, 0.4]))
    second = second._replace(values={"query_loss": second.values["query_loss"]})
    assert "query loss" in comparison(["a", "b"], [first, second], None).splitlines()[1]
    assert "0.7500" in comparison(["a", "b"], [first, second], None).splitlines()[2]


def test_files_of_classes_go_with_the_classes(tmp_path):
    saved(tmp_path, row([0.1, 0.2]))
    plain = row([0.1])
    plain.classes, plain.task_classes = [], []
    saved(tmp_path, plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "tasks.csv"]


def test_what_json_has_no_number_for_is_null(tmp_path):
    of_one_task = {"query_loss": torch.tensor([torch.inf])}
    save_results([RowResult("", {}, "", of_one_task, 0.1)], {"tasks_of": {"rate": [0.1, float("nan")]}}, tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert found["rows"][0]["metrics"]["query_loss"] == {"mean": None, "ci95": None}
    assert found["tasks_of"]["rate"] == [0.1, None]
