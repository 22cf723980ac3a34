"""The checkpoints of a run, and how it leaves when it is interrupted."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_meta.errors import ConfigurationError
from lightning_meta.files import keep

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint of a run and its latest, `last.ckpt`, from which it goes on exactly.

    `last.ckpt` is written every `every_n_steps` outer steps, after every validation, at the end of every epoch, and
    when the run is interrupted: the first SIGTERM or SIGINT (Ctrl-C) lets all devices finish the outer step at hand
    (and the validation, if one is due), saves, and leaves with the exit status 128 + the number of the signal. A second
    one acts at once.

    A training that starts afresh in the folder of another renames that one's files, `best.ckpt` to `best.1.ckpt`.

    Args:
        dirpath: The folder; Lightning's `checkpoints` in the folder of the logger if `None`.
        filename: The best checkpoint's name, without `.ckpt`.
        monitor: A log key; the best checkpoint is that of its best value in validation. If `None`, the latest
            validation is the best; in the command line, what the module's `monitor` and `mode` say.
        mode: `"min"` or `"max"`: whether the smallest or the largest value is the best.
        save_top_k: How many best checkpoints to keep; -1 for all, 0 for none.
        every_n_steps: After how many outer steps to write `last.ckpt`; 0 for after validations and epochs only.

    Raises:
        ConfigurationError: `every_n_steps`, `save_top_k` or `filename` is not a possible value.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str = "best",
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        every_n_steps: int = 500,
    ) -> None:
        for name, value, least in (("every_n_steps", every_n_steps, 0), ("save_top_k", save_top_k, -1)):
            if type(value) is not int or value < least:
                raise ConfigurationError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        if not filename:
            raise ConfigurationError("filename must be the name of the best checkpoint, got none.")
        super().__init__(
            dirpath,
            filename,
            monitor,
            mode=mode,
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.every_n_steps = every_n_steps
        self._signal: int | None = None
        self._interrupted = False
        self._handlers: dict[int, Any] = {}
        self._saved_step = -1
        self._begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals, instead of Lightning, whose devices would not agree on when to leave."""
        self._signal, self._interrupted, self._saved_step = None, False, -1
        if threading.current_thread() is threading.main_thread() and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        # A second one acts at once.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _say(f"\n{signal.Signals(number).name}: finishing this outer step, then saving. (Once more ends it at once.)\n")

    def _stop_listening(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save by steps, and when interrupted."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not self._begun:
            self._keep_others(trainer)
        self._settle_whether_interrupted(trainer)
        # A checkpoint from between an epoch's last step and its validation would go on without that validation.
        if _is_last_of_epoch(trainer) or _validation_follows(trainer, batch_idx):
            return
        due = self.every_n_steps and _steps_done(trainer) % self.every_n_steps == 0
        stops = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if due or stops or self._interrupted:
            self._save_last(trainer)
            self._leave_if_interrupted(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best, and the last."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._settle_whether_interrupted(trainer)
            self._save_last(trainer)
            self._leave_if_interrupted(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last, where there was no validation."""
        # (Of an epoch that is left in its middle, a checkpoint of now would count as of one that is complete.)
        if self._saved_step != _steps_done(trainer) and _is_last_of_epoch(trainer) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_last(trainer)
        self._leave_if_interrupted(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        self._stop_listening()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._stop_listening()

    def _keep_others(self, trainer: pl.Trainer) -> None:
        """Rename what another training has left, once this one, which starts afresh, has made its first step."""
        self._begun = True
        if trainer.ckpt_path is not None or self.last_model_path or not trainer.is_global_zero:
            return
        files = [Path(self._folder(trainer), f"{name}.ckpt") for name in (self.filename, "last")]
        kept = [keep(file) for file in files if file.is_file()]
        if kept:
            rank_zero_info(f"The checkpoints of the training before are kept as {', '.join(map(str, kept))}.")

    def _settle_whether_interrupted(self, trainer: pl.Trainer) -> None:
        self._interrupted = self._signal is not None
        if trainer.world_size > 1:  # a signal may reach one process only, or each at another step
            self._interrupted = trainer.strategy.reduce_boolean_decision(self._interrupted, all=False)

    def _save_last(self, trainer: pl.Trainer) -> None:
        self.last_model_path = str(Path(self._folder(trainer), "last.ckpt"))
        self._saved_step = _steps_done(trainer)
        trainer.save_checkpoint(self.last_model_path, weights_only=False)

    def _folder(self, trainer: pl.Trainer) -> str:
        return str(self.dirpath or trainer.default_root_dir)

    def _leave_if_interrupted(self, trainer: pl.Trainer) -> None:
        if not self._interrupted:
            return
        number = self._signal or signal.SIGTERM
        rank_zero_info(
            f"Interrupted ({signal.Signals(number).name}) after outer step {_steps_done(trainer)}, which is saved in "
            f"{self.last_model_path}. `fit` with --ckpt_path last (in a script trainer.fit(..., ckpt_path=...)) goes "
            "on from there."
        )
        # Lightning's launcher takes any other status of a child for a crash, and kills the rest.
        raise SystemExit(128 + number if trainer.is_global_zero else 0)


@rank_zero_only
def _say(text: str) -> None:
    """Write at once: a signal may come in the middle of another write, where `print` would fail."""
    os.write(2, text.encode())


def _steps_done(trainer: pl.Trainer) -> int:
    """How many outer steps have been made, over all epochs."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


def _is_last_of_epoch(trainer: pl.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this step."""
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    interval = trainer.val_check_batch  # infinite for a training without a length
    done = batch_idx + 1 if every is not None else _steps_done(trainer)
    return interval is not None and interval != float("inf") and done % interval == 0
