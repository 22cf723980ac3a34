"""The script that compares two models task by task."""

import csv
from pathlib import Path

import pytest

from tests.cli.test_main import QUIET
from tests.test_scripts import script

CONFIG = """
trainer: {{max_epochs: 1, default_root_dir: {root}/run}}
model:
  class_path: ProtoNetModule
  init_args: {{network: {{class_path: Conv4, init_args: {{hidden: 4}}}}}}
data:
  class_path: GlyphsDataModule
  init_args: {{train_classes: 10, val_classes: 10, test_classes: 20, n_query: 2, steps_per_epoch: 2, meta_batch_size: 2,
    val_tasks: 2, test_tasks: 20, test_k_shot: [1, 3]}}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(root=tmp_path))
    return str(path)


def numbers(line):
    return float(line.split(": ")[-1].split(" ± ")[0]), float(line.split("± ")[1].split(",")[0])


def test_with_the_nearest_centroid(config, tmp_path):
    lines = script("compare").compare([config, *QUIET])
    assert [line.split(": ")[0] for line in lines] == ["5-way 1-shot"] * 3 + ["5-way 3-shot"] * 3
    with (tmp_path / "run" / "compare.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["row", "task", config, "nearest centroid"]
    assert [row[0] for row in rows] == ["5-way 1-shot"] * 20 + ["5-way 3-shot"] * 20
    for start, shot in enumerate(("1-shot", "3-shot")):
        own = [(float(a), float(b)) for name, _, a, b in rows if name.endswith(shot)]
        differences = [a - b for a, b in own]
        mean = sum(differences) / 20
        spread = (sum((d - mean) ** 2 for d in differences) / 19) ** 0.5
        ours, theirs, difference = (numbers(line) for line in lines[3 * start : 3 * start + 3])
        assert ours[0] == pytest.approx(sum(a for a, _ in own) / 20, abs=0.006)
        assert theirs[0] == pytest.approx(sum(b for _, b in own) / 20, abs=0.006)
        assert difference == pytest.approx((mean, 1.96 * spread / 20**0.5), abs=0.006)
        assert spread > 0


def test_with_another_configuration(config, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(Path(config).read_text().replace("hidden: 4", "hidden: 8").replace("/run", "/other"))
    lines = script("compare").compare([config, str(other), *QUIET])
    assert lines[1].startswith(f"5-way 1-shot: {other}: ")
    same = script("compare").compare([config, config, *QUIET])
    assert numbers(same[2]) == (0, 0)


def test_a_configuration_is_needed():
    with pytest.raises(SystemExit, match=r"Give one configuration, or two, got 0"):
        script("compare").compare(["--data.seed", "1"])
