"""Meta-training in environments of Gymnasium: the same with workers and without, and nothing is left behind."""

import lightning.pytorch as pl
import psutil
import pytest
import torch

from lightning_meta.cli.main import main
from lightning_meta.errors import ConfigurationError, DataError
from lightning_meta.rl import AdaptedPolicy, CategoricalPolicy, GaussianPolicy, MAMLRLModule
from lightning_meta.rl.gymnasium_tasks import GymnasiumDataModule
from tests.cli.test_main import QUIET
from tests.rl.environments import Point

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
           "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 1}  # fmt: skip


def data(tasks=(-0.5, 0.5, 1.0), environment=Point, **options):
    settings = {"horizon": 10, "episodes": 3, "meta_batch_size": 4, "steps_per_epoch": 2, "set_task": "set_goal"}
    return GymnasiumDataModule(environment, list(tasks), **{**settings, **options})


def trained(policy=None, **options):
    torch.manual_seed(0)
    module = MAMLRLModule(policy or GaussianPolicy(2, 1), inner_lr=0.1)
    trainer = pl.Trainer(**OPTIONS)
    trainer.fit(module, data(**options))
    return module, trainer


def children():
    """Worker processes: of the fork server, which stays."""
    servers = psutil.Process().children()
    return [process for server in servers for process in server.children(recursive=True)]


def test_training_with_two_workers_is_that_without():
    (alone, trainer), (together, _) = trained(), trained(num_workers=2)
    for a, b in zip(alone.parameters(), together.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not children(), "Workers end with the Trainer."
    torch.manual_seed(0)
    start = GaussianPolicy(2, 1)
    assert any(not torch.equal(a, b) for a, b in zip(alone.network.parameters(), start.parameters(), strict=True))
    assert {"train/query_return", "val/query_success", "val/query_success_ci95"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_training_names_its_task(workers):
    tasks = [{"goal": 0.0, "wrong": "raise"}]
    with pytest.raises(
        DataError, match=r"Task 0 of train, .*'wrong': 'raise'.*, episode 0, of Point: ZeroDivisionError"
    ):
        trained(tasks=tasks, set_task=None, num_workers=workers)
    assert not children()


def test_actions_of_another_kind_are_refused():
    with pytest.raises(ConfigurationError, match="Use a CategoricalPolicy"):
        trained(options={"discrete": True})
    with pytest.raises(ConfigurationError, match="Use a GaussianPolicy"):
        trained(CategoricalPolicy(2, 3))


def test_a_policy_adapts_to_an_environment_for_itself():
    module, _ = trained()
    source = data()
    source.setup()
    policy = module.adapt_to(source.environment_of(2), episodes=4, horizon=10)
    assert isinstance(policy, AdaptedPolicy)
    observation, _ = source.environment_of(2).reset(seed=0)
    assert policy(observation).shape == (1,)


CONFIG = """
model:
  class_path: MAMLRLModule
  init_args:
    network: {class_path: GaussianPolicy, init_args: {observation_size: 2, action_size: 1}}
data:
  class_path: GymnasiumDataModule
  init_args:
    environment: tests.rl.environments.Point
    set_task: tests.rl.environments.Point.set_goal
    tasks: {train: [-0.5, 0.5], val: [0.0], test: tests.rl.environments.draw_goal}
    horizon: 5
    episodes: 2
    meta_batch_size: 2
    steps_per_epoch: 2
    test_tasks: 3
"""


def test_an_environment_of_ones_own_in_a_configuration(tmp_path):
    (tmp_path / "point.yaml").write_text(CONFIG)
    arguments = ["--config", str(tmp_path / "point.yaml"), "--trainer.default_root_dir", str(tmp_path), *QUIET]
    main(["fit", *arguments, "--trainer.max_epochs", "1"])
    tested = main(["test", *arguments, "--ckpt_path", "best"])
    assert {"test/query_return", "test/query_success_before"} <= tested.trainer.callback_metrics.keys()
    assert [tested.datamodule.suites["val"].task(i) for i in range(2)] == [0.0, 0.0]
    assert -1 <= tested.datamodule.suites["test"].task(0) <= 1
