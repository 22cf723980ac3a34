"""Pure tensor maths: what runs a network on many tasks, and what the algorithms are made of. No Lightning."""

from lightning_meta.functional.gradients import surrogate
from lightning_meta.functional.inner_loop import Order, adapt
from lightning_meta.functional.learner import Learner
from lightning_meta.functional.network import Params, select_parameters
from lightning_meta.functional.problem import Problem
from lightning_meta.functional.task_map import TaskMap, TaskParallel, Touch

__all__ = [
    "Learner",
    "Order",
    "Params",
    "Problem",
    "TaskMap",
    "TaskParallel",
    "Touch",
    "adapt",
    "select_parameters",
    "surrogate",
]
