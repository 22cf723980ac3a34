"""The algorithms: one LightningModule each."""

from lightning_meta.modules.base import MetaModule
from lightning_meta.modules.gradient_based import GradientBasedModule
from lightning_meta.modules.maml import MAMLModule
from lightning_meta.modules.outcome import Outcome

__all__ = ["GradientBasedModule", "MAMLModule", "MetaModule", "Outcome"]
