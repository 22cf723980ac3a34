"""What the command `lightning-meta` prints of an error, and what it shows in full."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.test_main import QUIET

ROOT = Path(__file__).parents[2]
SMALL = {
    "model": {
        "class_path": "MAMLModule",
        "init_args": {"network": {"class_path": "Conv4", "init_args": {"hidden": 4}}},
    },
    "data": {
        "class_path": "GlyphsDataModule",
        "init_args": {"train_classes": 6, "val_classes": 6, "test_classes": 6, "n_query": 2, "meta_batch_size": 2,
                      "steps_per_epoch": 2, "val_tasks": 2},
    },
    "trainer": {"max_epochs": 1},
}  # fmt: skip


def command(tmp_path, *arguments, **environment):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    given = {"PATH": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "lightning_meta", "fit", "--config", "small.yaml", *QUIET, *arguments],
        capture_output=True, text=True, cwd=tmp_path, env=given,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["--model.network.in_channels", "3"], "NetworkError: Conv4: layer 'body.0.0' (Conv2d) failed: Given groups=1"),
        (
            ["--data.n_way", "9"],
            "ConfigurationError: train: a task needs n_way=9 classes, but the data set has 6. Lower n_way.",
        ),
        (["--trainer.devices", "0"], "ConfigurationError: trainer: `Trainer(devices='0')` value is not a valid input"),
        (["--ckpt_path", "last"], "MissingFileError: --ckpt_path last: there is no file runs"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(arguments, last, tmp_path):
    done = command(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(last), done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_what_the_parser_refuses_ends_in_a_line_with_key_value_and_remedy(tmp_path):
    done = command(tmp_path, "--data.n_way", "five")
    assert done.returncode == 2
    expected = "error: data.n_way: five is not accepted: expected int or tuple. See lightning-meta fit --help."
    assert done.stderr.splitlines()[-1] == expected


def test_an_error_in_full_and_the_error_of_a_users_own_code(tmp_path):
    done = command(tmp_path, "--data.n_way", "9", LIGHTNING_META_TRACEBACK="1")
    assert "Traceback" in done.stderr
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n        raise KeyError('my mistake')\n"
    )
    network = ["--model.network", "mine.Net", "--model.network.in_features", "784", "--model.network.out_features", "5"]
    done = command(tmp_path, *network)
    assert "Traceback" in done.stderr
    assert "mine.py" in done.stderr
    assert done.stderr.splitlines()[-1] == "KeyError: 'my mistake'"
