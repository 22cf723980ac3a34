"""`compare`, `new`, `adapt` and `classify`, and what `test` and `show` leave."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_meta import MAMLModule, ProtoNetModule
from lightning_meta.cli.main import main
from lightning_meta.errors import CheckpointError, ConfigurationError, DataError, MissingFileError
from lightning_meta.export import load_exported
from tests.cli.test_main import QUIET, config  # noqa: F401
from tests.datamodules.test_image_folder import photos


def test_test_shows_a_table_and_compare_compares(config, tmp_path, capsys):  # noqa: F811
    run = str(tmp_path / "run")
    main(["fit", "--config", str(config), *QUIET])
    given = ["test", "--config", str(config), *QUIET]
    main([*given, "--ckpt_path", "best", "--json", str(tmp_path / "best.json")])
    printed = capsys.readouterr().out
    assert "way  shot  queries  tasks  query accuracy" in printed
    assert "DataLoader 0" not in printed  # Lightning's own table
    main(given)
    assert {path.name for path in (tmp_path / "run/results").iterdir()} == {"best", "untrained"}
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["checkpoint"].endswith("best.ckpt")
    capsys.readouterr()
    main(["compare", f"{run}/results/untrained", run])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 tasks")
    assert lines[2].startswith(f"{run}/results/untrained")
    assert lines[3].startswith(f"{run} ")
    accuracy = best["rows"][0]["metrics"]["query_accuracy"]
    assert f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['ci95']:.2f} %" in lines[3]
    with pytest.raises(ConfigurationError, match="two runs or more"):
        main(["compare", run])
    with pytest.raises(MissingFileError, match="holds no results"):
        main(["compare", run, str(tmp_path)])
    shutil.move(tmp_path / "run/results/best", tmp_path / "run/results/last")
    with pytest.raises(ConfigurationError, match="several results"):
        main(["compare", run, run])


def test_a_baseline_is_compared_in_pairs(config, tmp_path, capsys):  # noqa: F811
    """Of every row, against the values in the files of both."""
    given = ["--config", str(config), *QUIET, "--data.test_k_shot", "[1, 2]", "--data.test_tasks", "9"]
    main(["fit", *given])
    capsys.readouterr()
    made = main(["test", *given, "--ckpt_path", "best", "--baseline", "true", "--json", str(tmp_path / "r.json")])
    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "run/results"
    assert {path.name for path in folder.iterdir()} == {"best", "nearest_centroid"}
    tables = []
    for name in ("nearest_centroid", "best"):
        with (folder / name / "tasks.csv").open() as file:
            tables.append([(row["row"], float(row["query_accuracy"])) for row in csv.DictReader(file)])
    for shot in ("3-way 1-shot", "3-way 2-shot"):
        theirs, ours = (torch.tensor([value for row, value in table if row == shot]) for table in tables)
        difference = 100 * (ours - theirs).double()
        shown = f"{difference.mean():+.2f} ± {1.96 * difference.std() / 3:.2f} points"
        (line,) = [line for line in lines if line.startswith("MAMLModule") and shot in line and "points" in line]
        assert shown in line
    assert json.loads((tmp_path / "r.json").read_text())["module"] == "MAMLModule"
    ours = torch.tensor([value for row, value in tables[1] if row == "3-way 1-shot"]).mean().item()
    assert made.trainer.callback_metrics["test/query_accuracy/3-way 1-shot"].item() == pytest.approx(ours)
    assert "nearest centroid" not in "".join(run_and_read(["test", *given], capsys))
    sinusoid = str(Path(__file__).parents[2] / "configs/maml/sinusoid_5shot.yaml")
    with pytest.raises(ConfigurationError, match="which is for tasks of classes"):
        main(["test", "--config", sinusoid, *QUIET, "--baseline", "true",
              "--data.test_tasks", "2", "--trainer.default_root_dir", str(tmp_path / "sine")])  # fmt: skip


def run_and_read(arguments, capsys):
    capsys.readouterr()
    main(arguments)
    return capsys.readouterr().out


def test_results_of_another_runs_checkpoint_stay_apart(config, tmp_path, capsys):  # noqa: F811
    given = ["--config", str(config), *QUIET]
    for run in ("a", "b"):
        main(["fit", *given, "--trainer.default_root_dir", str(tmp_path / run), "--trainer.max_epochs", "1"])
    main(["test", *given, "--trainer.default_root_dir", str(tmp_path / "a"), "--ckpt_path", "best"])
    before = (tmp_path / "a/results/best/tasks.csv").read_text()
    main(["test", *given, "--trainer.default_root_dir", str(tmp_path / "a"), "--ckpt_path",
          str(tmp_path / "b/checkpoints/best.ckpt"), "--json", str(tmp_path / "new" / "b.json")])  # fmt: skip
    assert (tmp_path / "a/results/best/tasks.csv").read_text() == before
    assert (tmp_path / "a/results/b-best/tasks.csv").is_file()
    assert (tmp_path / "new/b.json").is_file()
    with pytest.raises(ConfigurationError, match="which is a folder"):
        main(["test", *given, "--json", str(tmp_path)])
    main(["test", *given, "--trainer.default_root_dir", str(tmp_path / "c"), "--trainer.fast_dev_run", "true"])
    assert not (tmp_path / "c/results").exists()


def test_show_draws_a_page_beside_the_untrained_network(config, tmp_path):  # noqa: F811
    main(["fit", "--config", str(config), *QUIET])
    shown = main(["show", "--config", str(config), *QUIET, "--ckpt_path", "best"])
    assert (tmp_path / "run/figures/test.png").is_file()
    (figures,) = [c for c in shown.trainer.callbacks if type(c).__name__ == "TaskFigures"]
    trained, untrained = (torch.cat([p.flatten() for p in m.parameters()]) for m in (shown.model, figures.untrained))
    assert not torch.equal(trained, untrained)


def test_a_new_project_passes_its_own_test_and_trains(tmp_path):
    folder = tmp_path / "project"
    main(["new", str(folder)])
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider"],
        ["lightning_meta", "fit", "--config", "config.yaml", "--data.steps_per_epoch", "2", *QUIET],
        ["lightning_meta", "test", "--config", "config.yaml", "--ckpt_path", "best", "--data.test_tasks", "4", *QUIET],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "run/results/best/tasks.csv").is_file()
    with pytest.raises(ConfigurationError, match="is not empty"):
        main(["new", str(folder)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a network for photos of colours, and a folder of some of classes of its own."""
    folder = tmp_path_factory.mktemp("photos")
    photos(folder / "photos", [f"class{i}" for i in range(12)], each=4)
    main([
        "fit", *QUIET, "--trainer.default_root_dir", str(folder / "run"), "--trainer.max_epochs", "1",
        "--model", "ProtoNetModule", "--model.network", "Conv4", "--model.network.hidden", "8",
        "--model.network.in_channels", "3", "--model.network.image_size", "16", "--data", "ImageFolderDataModule",
        "--data.root", str(folder / "photos"), "--data.image_size", "16", "--data.cache", str(folder / "cache"),
        "--data.n_way", "2", "--data.n_query", "2", "--data.steps_per_epoch", "20", "--data.val_tasks", "4",
    ])  # fmt: skip
    for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        (folder / "support" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (20 + i, 30), colour).save(folder / "support" / name / f"{i}.png")
        Image.new("RGB", (40, 30), tuple(int(0.9 * c) for c in colour)).save(folder / f"new_{name}.jpg")
    return folder


def test_adapt_and_classify(trained, tmp_path, capsys):
    model = str(tmp_path / "model.pt2")
    checkpoint = str(trained / "run/checkpoints/last.ckpt")
    main(["adapt", "--ckpt_path", checkpoint, "--support", str(trained / "support"), "--out", model])
    assert "blue, red" in capsys.readouterr().out
    main(["classify", "--model", model, str(trained / "new_red.jpg"), str(trained / "support/blue")])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["red", "blue", "blue"]
    assert [os.path.basename(line[0]) for line in lines] == ["new_red.jpg", "0.png", "1.png"]
    assert all(0.5 < float(line[2]) <= 1 for line in lines)


def test_the_transform_of_evaluation_is_applied(trained, tmp_path, capsys):
    """To the support images and to those that are classified: a transform that turns colours around."""
    settings = tmp_path / "invert.yaml"
    settings.write_text("data: {init_args: {eval_transform: {class_path: torchvision.transforms.v2.RandomInvert, "
                        "init_args: {p: 1.0}}}}\n")  # fmt: skip
    main(["fit", "--config", str(trained / "run/config.yaml"), "--config", str(settings), *QUIET,
          "--trainer.default_root_dir", str(tmp_path / "run")])  # fmt: skip
    main(["adapt", "--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"), "--support", str(trained / "support"),
          "--out", str(tmp_path / "model.pt2")])  # fmt: skip
    model = load_exported(tmp_path / "model.pt2")
    module = ProtoNetModule.load_from_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    images = [torch.tensor(c).view(3, 1, 1).expand(3, 16, 16) / 255 for c in ((20, 20, 200), (200, 20, 20))]
    support = 1 - torch.stack(images).repeat_interleave(2, 0)  # blue, red
    expected = module.adapt_to(support, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(model.network(support), expected(support), rtol=1e-4, atol=1e-4)
    capsys.readouterr()
    main(["classify", "--model", str(tmp_path / "model.pt2"), str(trained / "support/red")])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["red", "red"]
    probability = expected(support[2:3]).softmax(-1)[0, 1].item()
    assert float(lines[0][2]) == pytest.approx(probability, abs=2e-3)


def test_adapt_says_what_is_wrong(trained, tmp_path, config):  # noqa: F811
    checkpoint = str(trained / "run/checkpoints/last.ckpt")
    support, out = ["--support", str(trained / "support")], ["--out", str(tmp_path / "model.pt2")]
    with pytest.raises(MissingFileError, match="no such file"):
        main(["adapt", "--ckpt_path", "nowhere.ckpt", *support, *out])
    with pytest.raises(MissingFileError, match="There is no folder"):
        main(["adapt", "--ckpt_path", checkpoint, "--support", str(tmp_path / "nowhere"), *out])
    (tmp_path / "broken/a").mkdir(parents=True)
    (tmp_path / "broken/a/photo.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"photo\.png cannot be read"):
        main(["adapt", "--ckpt_path", checkpoint, "--support", str(tmp_path / "broken"), *out])
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(CheckpointError):
        main(["adapt", "--ckpt_path", str(tmp_path / "text.ckpt"), *support, *out])
    main(["fit", "--config", str(config), *QUIET])  # of glyphs, whose size is no option
    of_glyphs = str(tmp_path / "run/checkpoints/last.ckpt")
    with pytest.raises(ConfigurationError, match="Give --image_size"):
        main(["adapt", "--ckpt_path", of_glyphs, *support, *out])
    main(["adapt", "--ckpt_path", of_glyphs, *support, *out, "--image_size", "28", "--grayscale"])
    with pytest.raises(DataError, match="no network that was exported"):
        main(["classify", "--model", str(tmp_path / "text.ckpt"), str(trained / "new_red.jpg")])
    with pytest.raises(MissingFileError, match="There is no image"):
        main(["classify", "--model", str(tmp_path / "model.pt2"), "nowhere.jpg"])
    with pytest.raises(MissingFileError, match="holds no images"):
        main(["classify", "--model", str(tmp_path / "model.pt2"), str(trained / "support")])


def test_more_classes_than_outputs_are_refused(trained, tmp_path):
    for name in "abcdef":
        shutil.copytree(trained / "support/red", tmp_path / "six" / name)
    from lightning_meta import Conv4, GlyphsDataModule
    from tests.modules.test_maml import trainer

    module = MAMLModule(Conv4(5, hidden=4), 0.1)
    run = trainer(tmp_path)
    run.fit(module, GlyphsDataModule(n_way=5, n_query=1, steps_per_epoch=1, val_tasks=1, meta_batch_size=1))
    run.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(CheckpointError, match="started from a script"):
        main(["adapt", "--ckpt_path", str(tmp_path / "own.ckpt"), "--support", str(tmp_path / "six")])


def test_a_policy_is_not_adapted_to_images(trained, tmp_path):
    of_robot = Path(__file__).parents[2] / "configs/rl/maml/navigation.yaml"
    small = ["--data.horizon", "3", "--data.episodes", "2", "--data.meta_batch_size", "2", "--data.val_tasks", "2"]
    options = ["--config", str(of_robot), *QUIET, "--trainer.default_root_dir", str(tmp_path), *small]
    main(["fit", *options, "--trainer.max_steps", "4", "--data.steps_per_epoch", "1"])
    with pytest.raises(ConfigurationError, match="is of MAMLRLModule, which adapts by acting"):
        main(["adapt", "--ckpt_path", str(tmp_path / "checkpoints/last.ckpt"), "--support", str(trained / "support")])
