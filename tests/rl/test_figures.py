"""Figures of navigation: where robots go, and the return over inner steps."""

import pytest
import torch
from matplotlib.image import imread

from lightning_meta.callbacks import TaskFigures
from lightning_meta.rl import GaussianPolicy, MAMLRLModule, NavigationDataModule, NavigationFigures, plot_paths
from lightning_meta.rl.navigation import NavigationSuite
from lightning_meta.rl.rollout import chance, rollout
from tests.modules.test_contracts import trainer
from tests.rl.worlds import Corridors


def made():
    torch.manual_seed(0)
    return MAMLRLModule(GaussianPolicy(2, 2, hidden=(8,)), inner_lr=0.1, inner_steps=2)


def coloured(path):
    image = imread(path)[..., :3]
    blue = (image[..., 2] > 0.6) & (image[..., 0] < 0.3)
    red = (image[..., 0] > 0.9) & (image[..., 1] < 0.1)
    return int(blue.sum()), int(red.sum())


def test_a_test_draws_paths_and_the_return_over_inner_steps(tmp_path):
    data = NavigationDataModule(horizon=8, episodes=4, test_tasks=5, eval_batch_size=3)
    module, callbacks = made(), [NavigationFigures(tasks=2), TaskFigures()]
    (found,) = trainer(tmp_path, callbacks=callbacks).test(module, data, verbose=False)
    assert (tmp_path / "figures" / "test.png").exists()
    blue, red = coloured(tmp_path / "figures" / "paths.png")
    assert blue > 100
    assert red > 50
    (alone,) = trainer(tmp_path / "alone").test(module, data, verbose=False)
    assert found == alone  # drawing changes nothing


def test_episodes_are_drawn_to_their_end(tmp_path):
    suite = NavigationSuite("test", horizon=60)
    environments, like = suite.environments([0], 3), torch.zeros(1)
    random = chance(0, "test", [0], 0, 3, environments.spaces, 60)
    done = rollout(environments, GaussianPolicy(2, 2), random, like, [0])
    episodes = done.examples(torch.zeros_like(done.rewards))
    own = type(episodes)(episodes.inputs[0], type(episodes.targets)(*(t[0] for t in episodes.targets)))
    nowhere = own._replace(targets=own.targets._replace(mask=torch.zeros_like(own.targets.mask)))
    found = []
    for name, each in {"whole": own, "none": nowhere}.items():
        plot_paths([{"after": each}], suite.goals([0]), tmp_path / f"{name}.png")
        found.append(coloured(tmp_path / f"{name}.png")[0])
    assert found[0] > found[1] + 20


def test_what_cannot_be_drawn_is_said(tmp_path):
    module = MAMLRLModule(GaussianPolicy(3, 1), inner_lr=0.1)
    with pytest.raises(ValueError, match="not what a Corridors has"):
        trainer(tmp_path, callbacks=[NavigationFigures()]).test(module, Corridors(), verbose=False)
    with pytest.raises(ValueError, match="no task"):
        plot_paths([], torch.zeros(0, 2), tmp_path / "none.png")
