"""Figures."""

import torch
from matplotlib.image import imread

from lightning_meta import Conv4, MAMLModule
from lightning_meta.callbacks import TaskFigures, plot_adaptation, plot_episode
from lightning_meta.task import map_tensors
from tests.conftest import image_tasks
from tests.modules.test_maml import images, sinusoid_module, sinusoids, trainer


def red_pixels(path):
    image = imread(path)[..., :3]
    return int(((image[..., 0] > 0.9) & (image[..., 1] < 0.1) & (image[..., 2] < 0.1)).sum())


def test_the_episode_frames_wrong_predictions(tmp_path):
    task = map_tensors(lambda t: t[0], image_tasks(n_way=3, k_shot=1, n_query=4))
    right = torch.nn.functional.one_hot(task.query.targets, 3).float()
    wrong = right.roll(1, 0)  # one of each class's four is taken for another
    for name, predictions in {"right": right, "wrong": wrong, "none": None}.items():
        plot_episode(task, tmp_path / f"{name}.png", predictions)
    assert red_pixels(tmp_path / "right.png") == red_pixels(tmp_path / "none.png") == 0
    assert red_pixels(tmp_path / "wrong.png") > 300


def test_the_adaptation_curve_is_drawn(tmp_path):
    plot_adaptation({"a": torch.rand(10, 4), "b": torch.rand(10, 6)}, tmp_path / "curve.png")
    assert imread(tmp_path / "curve.png").shape[0] > 100


def test_the_callback_draws_after_a_test(tmp_path):
    module = MAMLModule(Conv4(5, hidden=4), 0.1)
    trainer(tmp_path, callbacks=[TaskFigures(steps=3)]).test(module, images(), verbose=False)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"episode.png", "adaptation.png"}
    trainer(callbacks=[TaskFigures(str(tmp_path / "sine"))]).test(sinusoid_module(), sinusoids(), verbose=False)
    assert {p.name for p in (tmp_path / "sine").iterdir()} == {"adaptation.png"}
