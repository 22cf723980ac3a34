"""Evaluation does not grow memory."""

import gc

import psutil
import torch

from lightning_meta import Conv4, MAMLModule
from tests.modules.test_maml import images, trainer


def test_two_thousand_evaluation_tasks_take_no_more_memory_than_two_hundred():
    torch.manual_seed(0)
    module = MAMLModule(Conv4(5, hidden=8), 0.1, inner_steps=2)
    process, resident = psutil.Process(), {}
    for tasks in (200, 200, 2000):  # the second data module takes some memory of its own
        trainer().test(module, images(n_query=5, test_tasks=tasks, eval_batch_size=8), verbose=False)
        gc.collect()
        resident[tasks] = process.memory_info().rss
    assert resident[2000] <= 1.05 * resident[200]
