"""The scripts beside the package."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from lightning_meta.cli.main import main
from lightning_meta.task import Examples, Task
from tests.cli.test_main import QUIET

ROOT = Path(__file__).parents[1]
SMALL = ["--data.steps_per_epoch", "2", "--data.val_tasks", "2", "--data.test_tasks", "2", "--trainer.max_epochs", "1"]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_of_the_results_has_a_configuration_and_a_command():
    document = (ROOT / "docs" / "results.md").read_text()
    rows = script("reproduce").recorded(document)
    assert len(rows) == len(re.findall(r"^\| `", document, re.MULTILINE))  # no line that the script cannot read
    for row in rows:
        assert (ROOT / "configs" / f"{row.split()[0]}.yaml").is_file()
        assert row.split()[0] in rows  # the test as configured has a row, too
    algorithms = {path.name for path in (ROOT / "configs").iterdir()} - {"trainer", "rl"}  # which has pages of its own
    assert {row.split("/")[0] for row in rows} == algorithms


def test_every_row_of_texts_has_a_configuration():
    of_texts = script("reproduce").recorded((ROOT / "docs" / "text.md").read_text())
    names = (path.relative_to(ROOT / "configs").with_suffix("") for path in (ROOT / "configs").rglob("*shot.yaml"))
    assert of_texts.keys() == {str(name) for name in names if name.name.startswith(("banking77", "clinc150"))}


@pytest.mark.parametrize("page", ["reinforcement_learning", "meta_world"])
def test_rows_of_environments_have_a_configuration(page):
    rows = script("reproduce").recorded((ROOT / "docs" / f"{page}.md").read_text())
    assert rows
    for row, result in rows.items():
        assert row.startswith("rl/")
        assert result.unit in ("return", "success")
        assert (ROOT / "configs" / f"{row}.yaml").is_file()


def test_a_row_is_run_again_and_compared(tmp_path, monkeypatch, capsys):
    reproduce = script("reproduce")
    monkeypatch.setattr(reproduce, "runs_folder", lambda: tmp_path)
    options = [*SMALL, *QUIET, "--data.test_tasks", "300"]  # so many that the interval is narrow
    assert reproduce.reproduce(["meta_sgd/sinusoid_5shot", *options]) == 1  # two steps teach nothing
    printed = capsys.readouterr().out
    assert re.search(r"meta_sgd/sinusoid_5shot: measured .*, recorded .*: NOT within the interval", printed)
    assert (tmp_path / "meta_sgd" / "sinusoid_5shot" / "checkpoints" / "best.ckpt").is_file()


def test_results_that_agree_give_success(monkeypatch):
    reproduce = script("reproduce")
    old = reproduce.recorded((ROOT / "docs" / "results.md").read_text())["maml/sinusoid_5shot"]
    new = {"maml/sinusoid_5shot": old._replace(mean=old.mean + old.ci95)}
    monkeypatch.setattr(reproduce, "measure", lambda units, options, **_: new)
    assert reproduce.reproduce(["maml/sinusoid_5shot"]) == 0


def test_rows_of_one_training_are_each_tested(tmp_path, monkeypatch, capsys):
    reproduce = script("reproduce")
    monkeypatch.setattr(reproduce, "runs_folder", lambda: tmp_path / "runs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(
        "| `protonet/glyphs_5way_1shot` | 50.00 ± 60.00 % | none |\n"
        "| `protonet/glyphs_5way_1shot --data.test_n_way 20 --data.test_k_shot 5` | 99.99 ± 0.01 % | none |\n"
    )
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "DOCUMENTS", ("results",))
    assert reproduce.reproduce(["protonet/glyphs_5way_1shot", *SMALL, *QUIET, "--data.test_tasks", "20"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("trained in") == 1
    assert re.search(r"5way_1shot: measured .*: within", printed)
    assert re.search(r"5way_1shot --data.test_n_way 20 --data.test_k_shot 5: measured .*: NOT within", printed)
    results = tmp_path / "runs" / "protonet" / "glyphs_5way_1shot" / "results" / "best" / "results.json"
    kept = json.loads(results.read_text())  # the test as configured
    shown = float(re.search(r"5way_1shot: measured ([\d.]+)", printed).group(1))
    assert shown == pytest.approx(100 * kept["rows"][0]["metrics"]["query_accuracy"]["mean"], abs=0.01)


def test_seeds_are_trained_apart_and_a_training_goes_on(tmp_path, monkeypatch, capsys):
    reproduce = script("reproduce")
    monkeypatch.setattr(reproduce, "runs_folder", lambda: tmp_path)
    row = tmp_path / "maml" / "sinusoid_5shot"
    options = [*SMALL, *QUIET, "--data.test_tasks", "10"]
    reproduce.reproduce(["maml/sinusoid_5shot", *options, "--seeds", "2"])
    printed = capsys.readouterr().out
    first, second = (float(x) for x in re.search(r"seeds 0 to 1: (\S+), (\S+); mean", printed).groups())
    assert first != second
    assert re.search(r"sinusoid_5shot, seed 1: trained in \d+\.\d minutes", printed)
    steps = [torch.load(f"{row}{end}/checkpoints/last.ckpt")["global_step"] for end in ("", "_seed1")]
    more = str(steps[0] + 1)
    reproduce.reproduce(["maml/sinusoid_5shot", *options, "--resume", "--trainer.max_epochs", more])
    assert torch.load(row / "checkpoints" / "last.ckpt")["global_step"] > steps[0] == steps[1]
    assert not list((row / "checkpoints").glob("*.1.ckpt"))  # which a training that starts afresh would leave


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which row"),
        (["maml/sinusoid_5shot", "--seeds", "0"], "Give --seeds N, at least 1"),
        (["maml/sinusoid_5shot", "--seeds", "2", "--seed_everything", "7"], "instead of --seed_everything"),
        (["maml/nothing"], "There is no row 'maml/nothing'"),
        (["maml/banking77_5way_1shot"], r"the folder that holds banking77\.jsonl\.gz"),
        (["maml/omniglot_5way_1shot"], r"needs --data\.root, the folder that holds omniglot-py"),
    ],
)
def test_what_is_missing_is_said(arguments, message, capsys):
    assert script("reproduce").reproduce(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_learned_rule_is_compared_and_drawn(tmp_path, capsys):
    config = str(ROOT / "configs" / "meta_lstm" / "glyphs_5way_1shot.yaml")
    main(["fit", "--config", config, "--trainer.default_root_dir", str(tmp_path), *SMALL, *QUIET])
    figure = tmp_path / "gates.png"
    arguments = [*SMALL[:-2], "--trainer.accelerator", "cpu", "--label_noise", "1.0"]
    script("meta_lstm_rule").compare(config, tmp_path, figure, arguments)
    printed = capsys.readouterr().out
    accuracies = [float(found) for found in re.findall(r"accuracy ([\d.]+) ±", printed)]
    learned, *plain = accuracies
    assert max(learned, *plain[2:]) < 20  # all labels are wrong: below chance, where the rate is not tiny
    assert len(re.findall(r"^gradient descent at .* minus this, task by task", printed, re.MULTILINE)) == 7
    assert figure.stat().st_size > 10_000


def test_support_labels_are_changed_to_other_classes():
    labels = torch.arange(5).repeat(40, 20)
    tasks = Task(Examples(torch.zeros(40, 100, 1), labels), Examples(torch.zeros(40, 5, 1), torch.arange(5)))
    for share in (0.0, 0.2, 1.0):
        noisy = script("meta_lstm_rule").mislabelled(tasks, share, torch.Generator().manual_seed(0))
        assert (noisy.support.targets != labels).float().mean() == pytest.approx(share, abs=0.02)
        assert noisy.support.targets.unique().tolist() == [0, 1, 2, 3, 4]
        assert noisy.query is tasks.query


def test_how_trainings_adapt_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    adaptation = script("adaptation")
    monkeypatch.setattr(adaptation, "runs_folder", lambda: tmp_path)
    rows = ["maml/sinusoid_5shot", "meta_sgd/sinusoid_5shot"]
    for row in rows:
        folder = str(tmp_path / row)
        config = str(ROOT / "configs" / f"{row}.yaml")
        main(["fit", "--config", config, "--trainer.default_root_dir", folder, *SMALL, *QUIET])
    figure = tmp_path / "figures" / "sinusoid.png"
    adaptation.draw(figure, 3, rows, [*SMALL[:-2], *QUIET[2:]])
    printed = re.findall(r"^\| `(\S+)` \|(.*)\|$", capsys.readouterr().out, re.MULTILINE)
    assert [(name, cells.count("±")) for name, cells in printed] == [(row, 4) for row in rows]
    assert figure.stat().st_size > 10_000


def test_learning_curves_are_drawn_over_minutes(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    reproduce, curves = script("reproduce"), script("learning_curves")
    for module in (reproduce, curves):
        monkeypatch.setattr(module, "runs_folder", lambda: tmp_path)
    row, quick = "protonet/glyphs_5way_1shot", [*SMALL[:-2], *QUIET]
    reproduce.measure({row: "%"}, [*quick, "--trainer.max_epochs", "2"])
    last = tmp_path / row / "checkpoints" / "last.ckpt"

    def clock():
        return torch.load(last)["callbacks"]["Timer"]["time_elapsed"]["train"]

    before = clock()
    reproduce.measure({row: "%"}, [*quick, "--trainer.max_epochs", "4"], resume=True)
    both = curves.curve(row)
    assert len(both.minutes) == len(both.accuracies) == 4  # of both parts
    assert all(20 <= accuracy <= 100 for accuracy in both.accuracies)
    assert both.minutes == pytest.approx([both.minutes[-1] * epoch / 4 for epoch in (1, 2, 3, 4)])
    assert 60 * both.minutes[-1] == pytest.approx(clock())
    assert clock() > before > 0
    figure = tmp_path / "figures" / "curves.png"
    curves.draw(figure, [row])
    assert re.search(rf"{row}: \S+ % in validation after \S+ minutes", capsys.readouterr().out)
    assert figure.stat().st_size > 10_000

    reproduce.measure({row: "%"}, [*quick, "--trainer.max_epochs", "1", "--data.steps_per_epoch", "3"])
    assert len(curves.curve(row).minutes) == 1  # of a training that began anew in the same folder
