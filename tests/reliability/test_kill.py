"""`kill -9` at any moment loses at most the work since the last checkpoint, and the resumed run ends the same."""

import time

import numpy as np
import pytest
import torch

from tests.processes import run, start
from tests.reliability.training import EPOCHS, STEPS, TIMEOUT, final_state, train


def assert_same(found, expected):
    """Equal to the last bit: parameters, what the inner optimizer learned or carries, optimizer and schedule."""
    assert found["global_step"] == expected["global_step"] == EPOCHS * STEPS
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(tensor, expected["state_dict"][name]) for name, tensor in found["state_dict"].items())
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    for mine, theirs in zip(*(s["optimizer_states"][0]["state"].values() for s in (found, expected)), strict=True):
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key])) for key, value in mine.items())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("algorithm", ["maml", "reptile", "meta_lstm"])
def test_a_killed_training_resumes_exactly(algorithm, tmp_path, request):
    (tmp_path / "whole").mkdir()
    run(train, algorithm, tmp_path / "whole", log=tmp_path / "whole.log")
    begun = time.monotonic()
    (tmp_path / "timed").mkdir()
    run(train, algorithm, tmp_path / "timed", log=tmp_path / "timed.log")
    seconds = time.monotonic() - begun
    expected = final_state(tmp_path / "whole")
    assert_same(final_state(tmp_path / "timed"), expected)
    kills, moments = 0, np.random.default_rng(0)
    resumed_at = []
    for attempt in range(100):
        if kills == request.config.getoption("kills"):
            break
        folder = tmp_path / str(attempt)
        folder.mkdir()
        (process,) = start(train, algorithm, folder, log=tmp_path / "killed.log")
        process.join(moments.uniform(0, seconds))
        alive = process.is_alive()
        process.kill()
        process.join()
        if not alive or not (folder / "last.ckpt").exists():
            continue
        kills += 1
        resumed_at.append(final_state(folder)["global_step"])
        run(train, algorithm, folder, log=tmp_path / "resumed.log")
        assert_same(final_state(folder), expected)
        assert not [path for path in folder.iterdir() if path.suffix == ".ckpt" and path.stem not in ("best", "last")]
    print(f"{algorithm}: {kills} of {kills} killed trainings ended bit-identical, resumed at steps {resumed_at}")
    assert kills == request.config.getoption("kills")


def test_when_one_rank_is_killed_the_other_ends_and_the_run_resumes_exactly(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    run(train, "maml", tmp_path / "whole", 2, world=2, log=tmp_path / "whole.log")
    survivor, victim = start(train, "maml", tmp_path / "killed", 2, world=2, log=tmp_path / "killed.log")
    for _ in range(600):
        if (tmp_path / "killed" / "best.ckpt").exists():
            break
        time.sleep(0.05)
    victim.kill()
    survivor.join(TIMEOUT + 5)
    assert not survivor.is_alive()
    assert survivor.exitcode not in (0, None)
    run(train, "maml", tmp_path / "killed", 2, world=2, log=tmp_path / "resumed.log")
    assert_same(final_state(tmp_path / "killed"), final_state(tmp_path / "whole"))
