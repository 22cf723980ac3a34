"""What happens around training and evaluation, in a callback: the module's own hooks are free for users."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_meta.functional.allocator import keep_freed_memory
from lightning_meta.functional.network import check_network
from lightning_meta.functional.normalization import advance_spectral_norms, batch_normalized_layers
from lightning_meta.modules.checkpoints import AtomicCheckpointIO, described, go_on, save
from lightning_meta.modules.optimizers import check_optimizers, keep_monitors
from lightning_meta.modules.trainer_checks import check_trainer


class Lifecycle(pl.Callback):
    """Prepares a `MetaModule`'s run, clips its meta-gradients and reports what it measures."""

    @classmethod
    def attach(cls, trainer: Any, module: pl.LightningModule) -> list[pl.Callback]:
        """Check the Trainer, and give it what it lacks: this callback, and checkpoints that are written whole."""
        check_trainer(trainer, type(module).__name__)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default, which is not atomic
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return [] if any(isinstance(callback, cls) for callback in trainer.callbacks) else [cls()]

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Ask the C library to keep freed memory, on a CPU."""
        if stage == "fit":
            keep_monitors(pl_module)
        if trainer.strategy.root_device.type == "cpu" and keep_freed_memory():
            rank_zero_info("Freed memory is kept for the next step (LIGHTNING_META_KEEP_MEMORY=0 leaves that out).")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the network again: `Trainer(sync_batchnorm=True)` has converted its layers by now."""
        check_network(pl_module.network)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the optimizer, and go on with the random numbers where the checkpoint left them."""
        check_optimizers(trainer.optimizers)
        go_on(pl_module)
        for logger in trainer.loggers:
            logger.log_hyperparams(described(pl_module, trainer.optimizers))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Let spectral norms follow the weights."""
        advance_spectral_norms(pl_module.network.modules())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Log what the inner optimizer has learned."""
        inner = getattr(pl_module.algorithm, "inner_optimizer", None)
        if inner is not None and pl_module.outer.logs_this_step:
            for name, value in inner.learned().items():
                pl_module.log(f"train/{name}", value)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed training needs, whatever a hook of the module's does."""
        save(pl_module, checkpoint)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Measure and clip the meta-gradient, here because it is unscaled by now under 16-bit precision."""
        if pl_module.outer.logs_this_step:
            norms = [p.grad.float().norm() for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/gradient_norm", torch.stack(norms).norm())
        pl_module.clip_gradients(optimizer, pl_module.outer.gradient_clip_val, "norm")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin to measure."""
        pl_module.evaluation.start("val")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log the means over all validation tasks."""
        pl_module.evaluation.finish(pl_module, "val")

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say which statistics batch normalization uses."""
        if batch_normalized_layers(pl_module.network):
            source = pl_module.algorithm.statistics
            rank_zero_info(f"In this evaluation, batch normalization uses the statistics of the {source}.")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin to measure."""
        pl_module.evaluation.start("test")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log the means over all test tasks."""
        pl_module.evaluation.finish(pl_module, "test")
