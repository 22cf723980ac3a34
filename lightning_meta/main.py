"""The command line: LightningCLI, with a run kept in one folder."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from yaml import YAMLError

from lightning_meta.callbacks import RunCheckpoint
from lightning_meta.datamodules import EpisodicDataModule
from lightning_meta.errors import ConfigurationError, is_lightnings, is_own, one_line
from lightning_meta.modules import MetaModule
from lightning_meta.parser import MetaParser, qualified, reasons
from lightning_meta.run_folder import KeptLog, RunFolder


class MetaCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for meta-learning modules.

    A run is one folder, `trainer.default_root_dir`: `config.yaml`, `checkpoints/best.ckpt` and `last.ckpt`, and
    `logs/<command>/metrics.csv`. `--ckpt_path best` and `last` mean those files, in any process. The best checkpoint is
    that of the highest `val/query_accuracy`, or of the lowest `val/query_loss` where `loss` is no cross-entropy.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint's options, and give the network the data's number of classes."""
        parser.add_class_arguments(RunCheckpoint, "checkpoint")
        parser.link_arguments("data.n_way", "model.init_args.network.init_args.n_way", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Let the configuration given win over the checkpoint's; the module names the differences when it loads."""

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder and the checkpoint to start from."""
        config = self._command_config()
        if config.trainer.default_root_dir is None:
            names = [config[key].class_path.rsplit(".", 1)[-1].lower() for key in ("model", "data")]
            config.trainer.default_root_dir = os.path.join("runs", "_".join(names))
        if config.checkpoint.monitor is None:
            loss = str(config.model.init_args.get("loss") or "cross_entropy").lower()
            accuracy = "cross_entropy" in loss or "crossentropy" in loss
            config.checkpoint.monitor = "val/query_accuracy" if accuracy else "val/query_loss"
            config.checkpoint.mode = "max" if accuracy else "min"
        if config.get("weights_only") is None:
            config.weights_only = True
        if config.get("ckpt_path"):
            config.ckpt_path = self._find_checkpoint(config.ckpt_path)
        elif self.subcommand != "fit":
            rank_zero_warn(
                f"No --ckpt_path: `{self.subcommand}` uses the network as it is initialized. `--ckpt_path best` takes "
                "the best checkpoint of this run."
            )

    def _command_config(self) -> Namespace:
        config: Namespace = self.config[self.subcommand]
        return config

    def _checkpoint_folder(self) -> Path:
        config = self._command_config()
        return Path(config.checkpoint.dirpath or os.path.join(config.trainer.default_root_dir, "checkpoints"))

    def _find_checkpoint(self, given: str) -> str:
        """The file that `--ckpt_path` means.

        Raises:
            FileNotFoundError: It is not there.
        """
        if "://" in given:  # a remote store; Lightning opens it
            return given
        path = self._checkpoint_folder() / f"{given}.ckpt" if given in ("best", "last") else Path(given)
        if not path.is_file():
            found = sorted(str(p) for p in self._checkpoint_folder().glob("*.ckpt"))
            there = f"Checkpoints of this run: {', '.join(found)}." if found else "This run has no checkpoint yet."
            raise FileNotFoundError(
                f"--ckpt_path {given}: there is no file {path}. {there} A run is the folder trainer.default_root_dir="
                f"{self._command_config().trainer.default_root_dir}; leave out --ckpt_path to start afresh."
            )
        return str(path)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and save the predictions `(tasks, queries, ...)` as `predictions.pt` in the run's folder."""
        predictions = self.trainer.predict(**kwargs)
        if predictions:
            rank = f".rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            path = Path(self.trainer.default_root_dir) / f"predictions{rank}.pt"
            torch.save(torch.cat(cast(list[torch.Tensor], predictions)).cpu(), path)
            rank_zero_info(f"The predictions for the query sets of the test tasks are in {path}.")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the Trainer with this run's checkpoints and, unless another logger is given, its CSV log."""
        config = self._get(self.config_init, "trainer")
        checkpoint = self._get(self.config_init, "checkpoint")
        callbacks = config.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if config.enable_checkpointing is not False and not config.barebones:
            checkpoint.dirpath = str(self._checkpoint_folder())
            callbacks.append(checkpoint)
        logger = config.logger
        own_log = (logger is None or logger is True) and not config.barebones
        if own_log:
            logger = CSVLogger(config.default_root_dir, name="logs", version=self.subcommand)
        with _explained("trainer"):
            trainer = super().instantiate_trainer(callbacks=callbacks, logger=logger, **kwargs)
        if own_log and trainer.is_global_zero:
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunFolder):
                    callback.kept_log = KeptLog(Path(logger.log_dir))
        return trainer

    def instantiate_classes(self) -> None:
        """Build the data module, the model and the Trainer.

        Raises:
            ConfigurationError: What is built from the configuration refused it, with an error not of this package.
        """
        with _explained("configuration"):
            super().instantiate_classes()


@contextmanager
def _explained(part: str) -> Iterator[None]:
    """Turn an error from outside of the package into one that names the part of the configuration.

    Raises:
        ConfigurationError: That part cannot be made.
    """
    try:
        yield
    except Exception as error:
        if is_own(error):
            raise
        raise ConfigurationError(f"{part}: {reasons(str(error))}.") from error


def main(args: ArgsType = None) -> MetaCLI:
    """Run the command line.

    Args:
        args: Arguments as a list of strings; those of the process if `None`.

    Returns:
        The command line object, with `trainer`, `model` and `datamodule`.

    Raises:
        ConfigurationError: The configuration can be read, but Lightning, or what is built from it, refuses it.
        SystemExit: The configuration cannot be read; the status is 2.
    """
    load = get_loader("yaml")
    set_loader("yaml", lambda text: qualified(load(text)), exceptions=(YAMLError,))
    try:
        return MetaCLI(
            MetaModule,
            EpisodicDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=MetaParser,
            parser_kwargs={"prog": "lightning-meta"},
            save_config_callback=RunFolder,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
        )
    except Exception as error:
        if is_lightnings(error):
            raise ConfigurationError(f"Lightning: {' '.join(str(error).split())}") from error
        raise
    finally:
        set_loader("yaml", load, exceptions=(YAMLError,))


def console() -> None:
    """The command `lightning-meta`: the package's own errors are one line each, and the exit status is 1 then.

    The environment variable `LIGHTNING_META_TRACEBACK=1` shows them in full. Errors of others always are.
    """
    try:
        main()
    except Exception as error:
        if not is_own(error) or os.environ.get("LIGHTNING_META_TRACEBACK"):
            raise
        sys.exit(one_line(error))


if __name__ == "__main__":
    console()
