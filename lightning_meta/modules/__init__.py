"""The algorithms: one LightningModule each."""

from lightning_meta.modules.base import MetaModule, Outcome
from lightning_meta.modules.gradient_based import GradientBasedModule
from lightning_meta.modules.maml import MAMLModule

__all__ = ["GradientBasedModule", "MAMLModule", "MetaModule", "Outcome"]
