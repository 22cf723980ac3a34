"""Algorithms in plain torch: start × inner optimizer × meta-gradient, or embedding × head. No Lightning."""

from lightning_meta.algorithms.acting import Actor
from lightning_meta.algorithms.base import Adapted, Algorithm, Fitted, MetaGradient, Outcome
from lightning_meta.algorithms.gradient_based import GradientBased, Unrolled
from lightning_meta.algorithms.heads import Head, PrototypeHead, RidgeHead, SVMHead
from lightning_meta.algorithms.implicit import Implicit
from lightning_meta.algorithms.interpolation import Interpolation
from lightning_meta.algorithms.metric_based import MetricBased
from lightning_meta.algorithms.start import PrototypeStart, Start, ZeroStart

__all__ = [
    "Actor",
    "Adapted",
    "Algorithm",
    "Fitted",
    "GradientBased",
    "Head",
    "Implicit",
    "Interpolation",
    "MetaGradient",
    "MetricBased",
    "Outcome",
    "PrototypeHead",
    "PrototypeStart",
    "RidgeHead",
    "SVMHead",
    "Start",
    "Unrolled",
    "ZeroStart",
]
