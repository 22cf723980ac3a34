"""The page of figures about a test."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from matplotlib.image import imread

from lightning_meta import Conv4, MAMLModule, ProtoNetModule
from lightning_meta.callbacks import TaskFigures, TaskResults, page
from tests.modules.test_maml import images, sinusoid_module, sinusoids, trainer


@pytest.fixture
def titles(monkeypatch):
    """What every axis of the pages drawn is called, or its text."""
    found = []
    saved = Figure.savefig

    def savefig(figure, *args, **kwargs):
        found.extend(axes.get_title() or axes.get_title("left") for axes in figure.axes)
        found.extend(line.get_label() for axes in figure.axes for line in axes.lines)
        return saved(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_of_images_it_has_all_there_is_to_see(tmp_path, titles):
    module = MAMLModule(Conv4(5, hidden=4), 0.1)
    figures = TaskFigures(steps=3, tasks=8, untrained=copy.deepcopy(module))
    trainer(tmp_path, callbacks=[TaskResults(), figures]).test(module, images(), verbose=False)
    assert imread(tmp_path / "figures/test.png").shape[0] > 300
    assert {"support", "adaptation, 8 tasks", "10 tasks", "hardest of 8 classes"} <= set(titles)
    assert {"meta-trained", "no meta-training"} <= set(titles)


def test_the_curves_are_those_of_the_modules(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(page, "draw_adaptation", lambda axes, curves, name: drawn.update(curves))
    module, data = sinusoid_module(), sinusoids(eval_batch_size=20)
    other = sinusoid_module(inner_lr=0.05)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    trainer(tmp_path, callbacks=[TaskFigures(steps=2, untrained=other)]).test(module, data, verbose=False)
    (batch,) = data.test_dataloader()
    for label, each in (("meta-trained", module), ("no meta-training", other)):
        expected = each.adaptation_curve(batch, 2)["query_loss"]
        torch.testing.assert_close(drawn[label], expected.cpu(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(drawn["meta-trained"], drawn["no meta-training"])


def test_of_regression_it_has_the_curves(tmp_path, titles):
    trainer(tmp_path, callbacks=[TaskFigures()]).test(sinusoid_module(), sinusoids(), verbose=False)
    assert {"task 0", "task 1", "task 2", "before adaptation", "after", "adaptation, 20 tasks"} <= set(titles)
    assert not any("hardest" in title for title in titles)


def test_an_algorithm_without_inner_steps_has_bars(tmp_path, titles):
    module = ProtoNetModule(Conv4(5, hidden=4))
    figures = TaskFigures(untrained=copy.deepcopy(module))
    trainer(tmp_path, callbacks=[TaskResults(), figures]).test(module, images(), verbose=False)
    assert "10 tasks" in titles
    assert not any("adaptation" in title for title in titles)


def test_tasks_of_different_sizes(tmp_path, titles):
    module = MAMLModule(Conv4(5, hidden=4), 0.1)
    data = images(n_way=(2, 5), k_shot=(1, 3), test_n_way=(2, 5), test_k_shot=(1, 3))
    trainer(tmp_path, callbacks=[TaskResults(), TaskFigures()]).test(module, data, verbose=False)
    assert "support" in titles
    assert any("hardest" in title for title in titles)


def test_loggers_get_it(tmp_path, monkeypatch):
    logged = []
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    monkeypatch.setattr(logger, "log_image", lambda name, images, step: logged.append((name, images)))
    page._log(logger, None, tmp_path / "test.png", 3)
    assert logged == [("test", [str(tmp_path / "test.png")])]
    page._log(SimpleNamespace(), None, tmp_path / "test.png", 3)  # any other logger is left alone
