"""Layers of many tasks at once on a CPU, with cheap first and second derivatives, in the place of torch's."""

from lightning_meta.functional.kernels.copies import in_float32
from lightning_meta.functional.kernels.functions import rounds
from lightning_meta.functional.kernels.isolation import Isolation, WritesInPlace
from lightning_meta.functional.kernels.mode import task_kernels

__all__ = ["Isolation", "WritesInPlace", "in_float32", "rounds", "task_kernels"]
