"""Inner optimizers: what adapts parameters to a task."""

from lightning_meta.inner.adam import Adam
from lightning_meta.inner.base import InnerOptimizer, elementwise
from lightning_meta.inner.curvature import MetaCurvature
from lightning_meta.inner.learned_rates import LSLR, LearnedRates, MetaSGD
from lightning_meta.inner.lstm import LSTMOptimizer
from lightning_meta.inner.sgd import SGD

__all__ = [
    "LSLR",
    "SGD",
    "Adam",
    "InnerOptimizer",
    "LSTMOptimizer",
    "LearnedRates",
    "MetaCurvature",
    "MetaSGD",
    "elementwise",
]
