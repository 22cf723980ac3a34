"""Reinforcement learning: policies, rollouts, environments, and modules that adapt to a task by acting in it."""

from lightning_meta.rl.data_module import RLDataModule
from lightning_meta.rl.environment import Box, Discrete, PolicySpaces, TaskEnvironments, TaskSuite, Transition

__all__ = [
    "Box",
    "Discrete",
    "PolicySpaces",
    "RLDataModule",
    "TaskEnvironments",
    "TaskSuite",
    "Transition",
]
