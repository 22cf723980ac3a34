"""Pure tensor maths, with no Lightning in it."""

from lightning_meta.functional.inner_loop import Order, adapt
from lightning_meta.functional.learner import Learner, Params, select_parameters
from lightning_meta.functional.meta_gradient import surrogate, touch
from lightning_meta.functional.task_map import TaskMap, TaskParallel

__all__ = ["Learner", "Order", "Params", "TaskMap", "TaskParallel", "adapt", "select_parameters", "surrogate", "touch"]
