"""Every shipped configuration runs, at a small size, through the command line."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_meta.main import main
from tests.test_main import QUIET

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))

FIRST = [
    "maml/glyphs_5way_1shot", "maml/omniglot_5way_1shot", "maml/omniglot_5way_5shot", "maml/omniglot_20way_1shot",
    "maml/omniglot_20way_5shot", "maml/sinusoid_10shot", "fomaml/omniglot_5way_1shot", "anil/omniglot_5way_1shot",
]  # fmt: skip


def test_the_promised_configurations_are_there():
    assert {f"{name}.yaml" for name in FIRST} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration(name, tmp_path, request):
    arguments = [
        "--config", str(ROOT / name), "--trainer.default_root_dir", str(tmp_path), *QUIET,
        "--data.val_tasks", "2", "--data.test_tasks", "2", "--data.meta_batch_size", "2", "--data.steps_per_epoch", "2",
    ]  # fmt: skip
    if "omniglot" in name:
        arguments += ["--data.root", str(request.getfixturevalue("omniglot_root"))]
    if "glyphs" in name:
        arguments += ["--data.train_classes", "30", "--data.val_classes", "30", "--data.test_classes", "30"]
    fitted = main(["fit", *arguments, "--trainer.max_epochs", "1"])
    assert fitted.trainer.global_step == 2
    tested = main(["test", *arguments, "--ckpt_path", "best"])
    assert torch.isfinite(tested.trainer.callback_metrics["test/query_loss"])
    algorithm = name.split("/")[0]
    assert fitted.model.first_order == (algorithm == "fomaml")
    assert all(n.startswith("head.") for n in fitted.model.adapted_names) == (algorithm == "anil")


@pytest.mark.parametrize("name", [name for name in CONFIGS if "T_max" in (ROOT / name).read_text()])
def test_the_schedule_ends_with_the_training(name):
    config = yaml.safe_load((ROOT / name).read_text())
    steps = config["trainer"]["max_epochs"] * config["data"]["init_args"]["steps_per_epoch"]
    assert config["model"]["init_args"]["lr_scheduler"]["init_args"]["T_max"] == steps
