"""A run's folder: what was there stays until a new start has begun."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback

from lightning_meta.files import keep


class RunFolder(SaveConfigCallback):
    """Keeps a run's folder: what was there stays as it was until this start has made its first step.

    Then the configuration of a training goes to `config.yaml`; that of a run before, from which it does not go on, is
    kept as `config.1.yaml`. A start that fails before leaves no trace.
    """

    kept_log: "KeptLog | None" = None
    begun = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing yet."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """The training has begun: write its configuration."""
        if not self.begun and trainer.is_global_zero:
            before = Path(trainer.default_root_dir) / "config.yaml"
            if trainer.ckpt_path is None and before.is_file():
                keep(before)
            self.save_config(trainer, trainer.lightning_module, "fit")
        self.begun = True

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the configuration, without the checkpoint: whoever uses the file later says from where to start."""
        path = Path(trainer.default_root_dir)
        path.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.ckpt_path = None
        self.parser.save(config, path / "config.yaml", overwrite=True, multifile=False)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """A validation has begun, unless it is the one before training."""
        self.begun = self.begun or not trainer.sanity_checking

    def on_test_batch_end(self, *_: Any) -> None:
        """A test has begun."""
        self.begun = True

    def on_predict_batch_end(self, *_: Any) -> None:
        """A prediction has begun."""
        self.begun = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the folder back, unless something has begun."""
        if self.kept_log is not None and not self.begun:
            self.kept_log.put_back()


class KeptLog:
    """The log of the start before, which the logger would delete, renamed: the first is `metrics.1.csv`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "metrics.csv"
        self.kept: Path | None = None
        self.new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        if self.file.is_file():
            self.kept = keep(self.file)

    def put_back(self) -> None:
        """Undo it, and remove the folders that were made since."""
        if self.kept is not None:
            self.kept.replace(self.file)
        elif self.file.parent in self.new_folders:
            for made in (self.file, self.file.with_name("hparams.yaml")):
                made.unlink(missing_ok=True)
        for folder in self.new_folders:  # the innermost first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
