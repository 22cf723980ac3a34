"""Tasks in environments of Gymnasium, in this process and in workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from lightning_meta.errors import ArgumentTypeError, ConfigurationError, DataError
from lightning_meta.rl import Box, Discrete, PolicySpaces
from lightning_meta.rl.gymnasium_tasks import GymnasiumDataModule
from tests.rl.environments import Point, draw_goal, episodes

GOALS = [-0.5, 0.0, 0.5]


def module(environment=Point, tasks=None, **options):
    data = GymnasiumDataModule(environment, [{"goal": g} for g in GOALS] if tasks is None else tasks, **options)
    data.setup()
    return data


def test_what_environments_return_is_that_of_each_alone():
    """Held against a loop over episodes by hand."""
    data = module(tasks=GOALS, set_task=Point.set_goal)
    found = episodes(data.suites["test"], range(3), count=2, steps=10)
    assert data.spaces == PolicySpaces((2,), Box((-1.0,), (1.0,)))
    generator = torch.Generator().manual_seed(0)
    actions = torch.stack([torch.rand(3, 2, 1, generator=generator) * 2 - 1 for _ in range(10)])
    for b in range(3):
        for e in range(2):
            environment = Point(GOALS[b])
            last, _ = environment.reset(seed=(2 * b + e + 2**63) % 2**31)
            assert torch.equal(found[0][b, e], torch.tensor(last, dtype=torch.float32))
            over = False
            for t in range(10):
                reward = 0.0
                success = False
                if not over:
                    last, reward, over, _, info = environment.step(actions[t, b, e].numpy())
                    success = info["success"]
                observation, rewards, ended, achieved = (tensor[b, e] for tensor in found[1 + 4 * t : 5 + 4 * t])
                assert torch.equal(observation, torch.tensor(last, dtype=torch.float32))
                assert rewards == np.float32(reward)
                assert bool(ended) == over
                assert bool(achieved) == success
            assert over, "Some episode must end early for this to mean anything."


@pytest.mark.parametrize("options", [{}, {"tasks": GOALS, "set_task": "set_goal"}, {"options": {"discrete": True}}])
def test_two_workers_are_no_worker(options):
    results = []
    for workers in (0, 2):
        data = module(num_workers=workers, **options)
        # 5 × 3 places: workers have different numbers of them; the second time environments are there already.
        results.append([episodes(data.suites["train"], numbers) for numbers in (range(5), range(5, 10), range(5))])
        data.teardown("fit")
    for alone, together in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[0][2], strict=True))


def test_a_task_is_a_function_of_its_number():
    drawn = module(tasks=draw_goal, set_task=Point.set_goal).suites
    goals = [drawn["train"].task(i) for i in range(200)]
    assert len(set(goals)) == 200
    assert min(goals) < -0.9
    assert max(goals) > 0.9
    assert [drawn["train"].task(i) for i in (7, 3)] == [goals[7], goals[3]]
    assert drawn["val"].task(7) != goals[7]
    listed = module(tasks=list(range(10)), set_task=Point.set_goal, seed=3).suites
    order = [listed["train"].task(i) for i in range(30)]
    assert all(sorted(order[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert order[:10] != order[10:20]
    assert [listed["test"].task(i) for i in range(12)] == [*range(10), 0, 1]
    other = module(tasks=list(range(10)), set_task=Point.set_goal, seed=4).suites
    assert [other["train"].task(i) for i in range(30)] != order


def test_splits_have_tasks_of_their_own():
    data = module(tasks={"train": GOALS, "test": [9.0, 8.0]}, set_task="set_goal")
    assert set(data.suites) == {"train", "test"}
    assert data.test_tasks == 2
    assert data.suites["test"].task(1) == 8.0
    assert module().val_tasks == 3


def test_spaces():
    assert module(options={"discrete": True}).spaces.actions == Discrete(3)
    assert module("CartPole-v1", [{}]).spaces == PolicySpaces((4,), Discrete(2))
    assert module("FrozenLake-v1", [{"is_slippery": s} for s in (True, False)]).spaces.observation == (16,)
    found = episodes(module("FrozenLake-v1", [{}]).suites["train"], [0], count=2)
    assert torch.equal(found[0].sum(-1), torch.ones(1, 2)), "A place on the lake is one of 16."
    assert module("Pendulum-v1", [{"g": 2.0}]).spaces.actions == Box((-2.0,), (2.0,))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"wrong": "raise"}, "ZeroDivisionError: a bug in the robot"),
        ({"wrong": "nan"}, "reset returned an observation that is not finite"),
        ({"wrong": "reward"}, "step returned the reward nan"),
        ({"wrong": "rewards"}, r"step returned the reward \[1, 2\], which has to be one number"),
        ({"wrong": "shape"}, r"an observation has the shape \(1,\)"),
        ({"wrong": "display"}, "no display"),
        ({"size": 3}, r"its observations are Box\(.*\), and those of other tasks are Box"),
        ({"discrete": True}, r"its actions are Discrete\(3, start=-1\), and those of other tasks are Box"),
        ({"colour": "red"}, "Point cannot be made with the arguments {'colour': 'red'}: TypeError"),
    ],
)
def test_what_goes_wrong_is_one_error_that_names_it(wrong, message, workers):
    data = module(tasks=[{"goal": 1.0}, wrong], num_workers=workers)
    with pytest.raises(DataError, match=f"Task 1 of test, .*, episode 0, of Point: .*{message}"):
        episodes(data.suites["test"], range(2))
    assert not _workers()
    # What follows starts anew.
    assert len(episodes(data.suites["test"], [0])) > 1
    data.teardown("fit")


def _workers():
    """Worker processes of environments that are there."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "forkserver" in " ".join(process.cmdline()) and process.parent().pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_worker_that_ends_is_an_error():
    data = module(tasks=[{"wrong": "exit"}], num_workers=2)
    with pytest.raises(DataError, match="A worker process of environments ended with exit code 3"):
        episodes(data.suites["train"], range(2))
    assert not _workers()


class Blind(Point):
    """Has nothing to see."""

    def __init__(self):
        super().__init__()
        del self.observation_space


def test_what_cannot_be():
    with pytest.raises(ArgumentTypeError, match="give its class"):
        GymnasiumDataModule(Point(), [{}])
    with pytest.raises(ConfigurationError, match="There is no task for train"):
        GymnasiumDataModule(Point, [])
    with pytest.raises(ArgumentTypeError, match="must be a list, or a function"):
        GymnasiumDataModule(Point, 3)
    with pytest.raises(ConfigurationError, match="keyword arguments are a list of dictionaries"):
        GymnasiumDataModule(Point, {"goal": 1.0})
    with pytest.raises(DataError, match=r"Nonsense-v9 cannot be made.*Nonsense"):
        module("Nonsense-v9", [{}])
    with pytest.raises(DataError, match=r"Cart cannot be made.* named by its full path, my_module\.MyEnvironment"):
        module("Cart", [{}])
    with pytest.raises(ConfigurationError, match=r"A task of Point is 0\.5, which is no dictionary .* Give set_task"):
        module(tasks=[0.5])
    with pytest.raises(DataError, match=r"Point: set_task='set_gaol' failed with 0\.5: AttributeError: .*set_gaol"):
        module(tasks=[0.5], set_task="set_gaol")
    with pytest.raises(DataError, match=r"Point: set_task=<function .* failed with 0\.5: TypeError"):
        module(tasks=[0.5], set_task=lambda environment: None)
    with pytest.raises(ConfigurationError, match=r"Blind needs observation_space, as gymnasium\.Env has"):
        module(Blind, [{}])
    with pytest.raises(ConfigurationError, match="there is no module nowhere"):
        module("nowhere.Robot", [{}])
    with pytest.raises(ConfigurationError, match="They must be a Discrete or a Box with one dimension"):
        module(TwoChoices, [{}])
    suite = module().suites["train"]
    old, new = suite.environments([0], 1), suite.environments([0], 1)
    new.reset(np.zeros((1, 1), np.uint64))
    with pytest.raises(ConfigurationError, match="given to another batch of tasks"):
        old.reset(np.zeros((1, 1), np.uint64))


class TwoChoices(Point):
    def __init__(self):
        super().__init__()
        import gymnasium

        self.action_space = gymnasium.spaces.MultiDiscrete([2, 2])


def test_a_full_path_names_an_environment():
    data = module("tests.rl.environments.Point", GOALS, set_task="tests.rl.environments.Point.set_goal")
    expected = module(tasks=GOALS, set_task=Point.set_goal)
    for a, b in zip(*(episodes(d.suites["val"], range(2)) for d in (data, expected)), strict=True):
        assert torch.equal(a, b)


SCRIPT = """
import numpy as np, os, sys, time
from lightning_meta.rl.gymnasium_tasks import GymnasiumDataModule
from tests.rl.environments import Point

class Slow(Point):  # of a script: only cloudpickle can send it
    def step(self, action):
        os.write(1, f"{os.getpid()}\\n".encode())  # in one piece
        time.sleep(60)

if __name__ == "__main__":
    data = GymnasiumDataModule(Slow, [{}], num_workers=2)
    data.setup()
    environments = data.suites["train"].environments([0, 1], 1)
    import torch
    environments.reset(np.zeros((2, 1), np.uint64))
    environments.step(torch.zeros(2, 1, 1))
"""


def test_workers_are_gone_after_kill_9(tmp_path):
    """Killed while its workers are at work, and would be for another minute."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    try:
        workers = [int(process.stdout.readline()) for _ in range(2)]
        assert set(workers) <= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    start = time.perf_counter()
    while not all(map(_has_ended, workers)) and time.perf_counter() - start < 10:
        time.sleep(0.05)
    assert time.perf_counter() - start < 5


def _has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Weighed(Point):
    """Pays the sum of an array that it is made with."""

    def __init__(self, weights=None, **options):
        super().__init__(**options)
        self.weights = weights

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(self.weights.sum()), *rest


def test_an_environment_is_used_again_for_the_same_task_only():
    """Arrays so large that their text is shortened."""
    tasks = [{"weights": np.full((100, 100), i / 1e4)} for i in range(4)]
    data = module(Weighed, tasks)
    data.setup()
    suite = data.suites["train"]
    for numbers in ([0, 1], [2, 3], [3, 1]):
        environments = suite.environments(numbers, 1)
        environments.reset(np.zeros((2, 1), dtype=np.uint64))
        rewards = environments.step(torch.zeros(2, 1, environments.spaces.actions.size)).rewards
        environments.close()
        assert rewards.flatten().tolist() == pytest.approx([suite.task(i)["weights"].sum() for i in numbers])
