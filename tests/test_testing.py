"""The tester itself: what is right passes, what is wrong is found."""

import pytest
import torch
from torch import nn

from lightning_meta import MAMLModule, SinusoidDataModule
from lightning_meta.datamodules import ClassTasks
from lightning_meta.datasets import SinusoidTasks, glyphs
from lightning_meta.inner import LSLR, SGD, Adam, LSTMOptimizer, MetaCurvature, MetaSGD
from lightning_meta.testing import check_algorithm, check_inner_optimizer, check_tasks
from tests.conftest import image_tasks, vector_tasks
from tests.modules.test_contracts import every_algorithm, made


@every_algorithm
def test_every_algorithm_passes(name):
    check_algorithm(made(name), image_tasks())


OPTIMIZERS = [
    lambda: SGD(0.1, momentum=0.9), lambda: Adam(0.01), lambda: MetaSGD(0.1), lambda: LSLR(0.1, positive=True),
    lambda: LSTMOptimizer(4), lambda: MetaCurvature(0.1),
]  # fmt: skip


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["sgd", "adam", "meta_sgd", "lslr", "lstm", "curvature"])
def test_every_inner_optimizer_passes(make):
    check_inner_optimizer(make)


def test_tasks_pass_also_with_another_number_of_examples_each():
    check_tasks(SinusoidTasks("train", 5, 5))
    check_tasks(ClassTasks(glyphs(range(12)), "train", (2, 5), (1, 3), 2))


class Sums(MAMLModule):
    def meta_loss(self, tasks):
        return super().meta_loss(tasks) * len(tasks.support.targets)


def test_a_sum_over_tasks_is_found():
    with pytest.raises(AssertionError, match="the mean of single tasks and the batch differ by"):
        check_algorithm(Sums(nn.Linear(6, 3).double(), 0.1), vector_tasks())


class InPlace(SGD):
    def update(self, grads, state, params, **extra):
        return {name: param.sub_(self.lr * grads[name]) for name, param in params.items()}, state


def test_an_optimizer_that_writes_in_place_is_found():
    with pytest.raises(AssertionError, match=r"wrote into its parameters|differ by"):
        check_inner_optimizer(lambda: InPlace(0.1))


class Drawn:
    """Tasks from a global generator."""

    def tasks(self, numbers):
        data = SinusoidDataModule()
        data.setup()
        tasks = data.tasks["train"].tasks(numbers)
        return tasks._replace(support=tasks.support._replace(inputs=torch.rand(tasks.support.inputs.shape)))


def test_tasks_that_are_drawn_anew_are_found():
    with pytest.raises(AssertionError, match="Task 0 is another one"):
        check_tasks(Drawn())
