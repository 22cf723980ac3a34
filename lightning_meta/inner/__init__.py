"""Inner optimizers: what adapts parameters to a task."""

from lightning_meta.inner.base import InnerOptimizer
from lightning_meta.inner.sgd import SGD

__all__ = ["SGD", "InnerOptimizer"]
