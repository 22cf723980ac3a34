"""The same training and the same evaluation on any number of devices."""

import pytest
import torch

from tests.conftest import relative_error
from tests.distributed.training import (
    CASES,
    FEW_CASES,
    parameters_after_five_steps,
    tasks_seen,
    test_results,
    train_some_steps,
)
from tests.processes import run


@pytest.mark.timeout(1800)
def test_gradient_parity(tmp_path, request):
    """Parameters after five outer steps agree to 1e-10 in float64, and the meta-gradient to 1e-5 in float32."""
    cases = CASES if request.config.getoption("all_cases") else FEW_CASES
    found = {}
    for world in (1, 2, 4):
        path = tmp_path / f"{world}.pt"
        run(parameters_after_five_steps, world, cases, path, world=world, log=tmp_path / "log", timeout=1500)
        found[world] = torch.load(path, weights_only=True)
    assert len(found[1]) == len(cases)
    worst = {"parameters": 0.0, "gradient": 0.0}
    for case, (parameters, gradient) in found[1].items():
        assert gradient.any()
        for world in (2, 4):
            difference = (found[world][case][0] - parameters).abs().max().item()
            error = relative_error([found[world][case][1]], [gradient])
            worst = {"parameters": max(worst["parameters"], difference), "gradient": max(worst["gradient"], error)}
            assert difference <= 1e-10, (case, world)
            assert error <= 1e-5, (case, world)
    print(f"{len(cases)} cases on 1, 2 and 4 processes: largest differences {worst}")


@pytest.mark.timeout(600)
def test_task_parity(tmp_path, request):
    """The same task numbers with the same data in every outer step, whatever the processes and workers."""
    expected = None
    every = [(world, workers) for world in (1, 2, 4) for workers in (0, 2)]
    for world, workers in every if request.config.getoption("all_cases") else [(1, 0), (2, 2), (4, 0)]:
        path = tmp_path / f"{world}-{workers}"
        run(tasks_seen, world, workers, path, world=world, log=tmp_path / "log")
        seen = sorted(entry for rank in range(world) for entry in torch.load(f"{path}.{rank}", weights_only=True))
        assert [(step, number) for step, number, _ in seen] == [(i // 4, i) for i in range(200)]
        expected = expected or seen
        assert seen == expected, (world, workers)


def test_evaluation_parity(tmp_path):
    """601 tasks, each once: the same mean and interval on 1, 2 and 3 processes."""
    found = {}
    for world in (1, 2, 3):
        path = tmp_path / f"{world}.pt"
        run(test_results, world, path, world=world, log=tmp_path / "log")
        found[world] = torch.load(path, weights_only=True)
    assert {"test/query_accuracy_ci95", "test/query_accuracy", "wave test/query_loss"} <= found[1].keys()
    for world in (2, 3):
        assert found[world] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_a_training_goes_on_with_another_number_of_devices(before, after, tmp_path):
    for name, stages in (("whole", [(1, 30)]), ("elastic", [(before, 13), (after, 30)])):
        (tmp_path / name).mkdir()
        for i, (world, steps) in enumerate(stages):
            run(train_some_steps, world, tmp_path / name, steps, i > 0, world=world, log=tmp_path / "log")
    whole, elastic = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "elastic"))
    assert whole["global_step"] == elastic["global_step"] == 30
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(elastic["state_dict"][name], tensor, rtol=0, atol=1e-10)
