"""Reinforcement learning: policies, rollouts, environments, and modules that adapt to a task by acting in it."""

from lightning_meta.rl.actions import Actions, CategoricalActions, GaussianActions, UniformActions
from lightning_meta.rl.data_module import RLDataModule
from lightning_meta.rl.environment import Box, Discrete, PolicySpaces, TaskEnvironments, TaskSuite, Transition
from lightning_meta.rl.policy_gradient import PolicyGradient
from lightning_meta.rl.trajectories import Experience, Trajectories

__all__ = [
    "Actions",
    "Box",
    "CategoricalActions",
    "Discrete",
    "Experience",
    "GaussianActions",
    "PolicyGradient",
    "PolicySpaces",
    "RLDataModule",
    "TaskEnvironments",
    "TaskSuite",
    "Trajectories",
    "Transition",
    "UniformActions",
]
