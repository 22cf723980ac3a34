"""Reinforcement learning: policies, rollouts, environments, and modules that adapt to a task by acting in it."""

from lightning_meta.rl.actions import Actions, CategoricalActions, GaussianActions, UniformActions
from lightning_meta.rl.data_module import RLDataModule
from lightning_meta.rl.deployment import AdaptedPolicy
from lightning_meta.rl.environment import Box, Discrete, PolicySpaces, TaskEnvironments, TaskSuite, Transition
from lightning_meta.rl.figures import NavigationFigures, plot_paths
from lightning_meta.rl.gymnasium_tasks import GymnasiumDataModule
from lightning_meta.rl.half_cheetah import HalfCheetahDataModule
from lightning_meta.rl.maml import MAMLRLModule
from lightning_meta.rl.meta_lstm import MetaLSTMRLModule
from lightning_meta.rl.meta_world import MetaWorldDataModule
from lightning_meta.rl.meta_world_agent import MetaWorldAgent
from lightning_meta.rl.navigation import NavigationDataModule
from lightning_meta.rl.policies import CategoricalPolicy, GaussianPolicy, RandomPolicy
from lightning_meta.rl.policy_gradient import PolicyGradient
from lightning_meta.rl.reptile import ReptileRLModule
from lightning_meta.rl.rollout import rollout
from lightning_meta.rl.trajectories import Experience, Trajectories
from lightning_meta.rl.video import record_video

__all__ = [
    "Actions",
    "AdaptedPolicy",
    "Box",
    "CategoricalActions",
    "CategoricalPolicy",
    "Discrete",
    "Experience",
    "GaussianActions",
    "GaussianPolicy",
    "GymnasiumDataModule",
    "HalfCheetahDataModule",
    "MAMLRLModule",
    "MetaLSTMRLModule",
    "MetaWorldAgent",
    "MetaWorldDataModule",
    "NavigationDataModule",
    "NavigationFigures",
    "PolicyGradient",
    "PolicySpaces",
    "RLDataModule",
    "RandomPolicy",
    "ReptileRLModule",
    "TaskEnvironments",
    "TaskSuite",
    "Trajectories",
    "Transition",
    "UniformActions",
    "plot_paths",
    "record_video",
    "rollout",
]
