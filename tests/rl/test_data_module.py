"""What a batch of reinforcement learning says of its tasks, and what data modules refuse."""

from typing import ClassVar

import pytest
import torch

from lightning_meta.rl import Box, Discrete, PolicySpaces, RLDataModule
from lightning_meta.testing import check_tasks


class Suite:
    def __init__(self, size=2):
        self.spaces, self.closed = PolicySpaces((size,), Box((-1.0,), (1.0,))), 0

    def environments(self, numbers, episodes):
        raise AssertionError("nothing acts here")

    def close(self):
        self.closed += 1


class Data(RLDataModule):
    sizes: ClassVar = {"train": 2, "val": 2}

    def configure_suite(self, split):
        return Suite(self.sizes[split]) if split in self.sizes else None


def test_a_batch_says_of_which_split_and_numbers_its_tasks_are():
    data = Data(meta_batch_size=3, steps_per_epoch=2, val_tasks=5, eval_batch_size=4, episodes=7, val_query_episodes=9)
    data.setup()
    batches = list(data.train_dataloader())
    assert [batch.support.targets.flatten().tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5]]
    assert batches[0].support.inputs.tolist() == [[0]] * 3
    validation = list(data.val_dataloader())
    assert [len(batch.query.targets) for batch in validation] == [4, 1]
    assert validation[0].query.inputs.tolist() == [[1]] * 4
    check_tasks(data.tasks["val"])
    assert data.episodes == {"train": (7, 7), "val": (7, 9), "test": (7, 7)}
    # Tests of as many episodes can be compared, whatever training had.
    assert data.of_test_tasks == Data(episodes=3, test_episodes=7, test_query_episodes=7).of_test_tasks
    assert data.of_test_tasks != Data(episodes=7, test_query_episodes=8).of_test_tasks
    assert data.spaces.actions.size == 1
    with pytest.raises(ValueError, match=r'configure_suite\("test"\) returned None'):
        data.test_dataloader()
    data.teardown("fit")
    assert all(suite.closed == 1 for suite in data.suites.values())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="val_episodes must be at least 1, got 0"):
        Data(val_episodes=0)
    with pytest.raises(TypeError, match=r"episodes must be a whole number, got 2\.5"):
        Data(episodes=2.5)
    with pytest.raises(ValueError, match=r"call setup\(\)"):
        Data().spaces  # noqa: B018
    data = type("Others", (Data,), {"sizes": {"train": 2, "val": 3}})()
    data.setup()
    with pytest.raises(ValueError, match="observations and actions differ"):
        data.spaces  # noqa: B018
    with pytest.raises(ValueError, match="equally many bounds"):
        Box((0.0,), ())
    with pytest.raises(ValueError, match="below its high"):
        Box((0.0,), (0.0,))
    with pytest.raises(ValueError, match="at least two actions"):
        Discrete(1)


def test_actions_of_a_policy_become_those_of_the_environment():
    spaces = PolicySpaces((1,), Box((0.0, -float("inf")), (4.0, 1.0)))
    given = torch.tensor([[-1.0, 7.0], [0.0, -7.0], [3.0, 0.5]], dtype=torch.float64)
    assert spaces.environment_actions(given).tolist() == [[0.0, 7.0], [2.0, -7.0], [4.0, 0.5]]
    choices = torch.tensor([0, 2])
    assert PolicySpaces((1,), Discrete(3)).environment_actions(choices) is choices
