"""Two processes are one, and a killed training goes on as if it had not been."""

import pytest
import torch

from tests.processes import run, start
from tests.rl.training import train, train_and_die


def found(folder):
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("name", ["maml", "reptile"])
def test_two_processes_are_one(name, tmp_path):
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        run(train, name, tmp_path / str(world), world, world=world, log=tmp_path / "log")
    one, two = (found(tmp_path / str(world)) for world in (1, 2))
    for key, value in one["parameters"].items():
        assert (two["parameters"][key] - value).abs().max() < 1e-10
    for key in ("train/env_steps", "test/query_return", "test/query_success", "test/query_return_ci95"):
        assert two["logged"][key] == pytest.approx(one["logged"][key], rel=1e-6), key
    assert one["logged"]["train/env_steps"] > 0


@pytest.mark.parametrize(("name", "after"), [("maml", 3), ("maml", 6), ("reptile", 5)])
def test_a_killed_training_resumes_bit_for_bit(name, after, tmp_path):
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    run(train, name, tmp_path / "whole", log=tmp_path / "whole.log")
    (process,) = start(train_and_die, name, tmp_path / "killed", after, log=tmp_path / "killed.log")
    process.join(120)
    assert process.exitcode == -9
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["loops"]["fit_loop"][
        "epoch_loop.batch_progress"
    ]["total"]["processed"] in (after, after - after % 4)
    run(train, name, tmp_path / "killed", log=tmp_path / "resumed.log")
    expected, resumed = found(tmp_path / "whole"), found(tmp_path / "killed")
    for key, value in expected["parameters"].items():
        assert torch.equal(resumed["parameters"][key], value)
    assert resumed["logged"] == expected["logged"]
