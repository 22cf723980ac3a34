"""The command line: LightningCLI, with a run kept in one folder."""

import copy
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace, get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from yaml import YAMLError

from lightning_meta import rl  # noqa: F401  whose classes are named bare, too
from lightning_meta.callbacks import RunCheckpoint, TaskFigures, TaskResults
from lightning_meta.cli.baseline import compared, tested_baseline
from lightning_meta.cli.commands import COMMANDS, listed, run_command
from lightning_meta.cli.parser import MetaParser, qualified, reasons
from lightning_meta.cli.predictions import save_predictions
from lightning_meta.cli.run_folder import KeptLog, RunFolder
from lightning_meta.cli.ways import fill_in_ways, keep_own_ways
from lightning_meta.datamodules import TaskDataModule
from lightning_meta.errors import ConfigurationError, LightningMetaError, MissingFileError, comes_from, one_line
from lightning_meta.modules import MetaModule


class MetaTrainer(pl.Trainer):
    """A Trainer that can show a test."""

    def show(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Draw one page about the test tasks: an episode with its mistakes, adaptation, spread, hardest classes.

        Args:
            model: The module.
            datamodule: Its data.
            ckpt_path: The checkpoint to start from: `best` or `last` of this run's folder, or a file's path.
            weights_only: Read tensors and plain values only from a checkpoint, which runs no code. Default: true.
        """
        return self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=weights_only)


class MetaCLI(LightningCLI):
    """`fit`, `validate`, `test`, `predict` and `show` for meta-learning modules.

    A run is one folder, `trainer.default_root_dir`: `config.yaml`, `checkpoints/best.ckpt` and `last.ckpt`,
    `logs/<command>/metrics.csv`, `results/<checkpoint>/` and `figures/`. `--ckpt_path best` and `last` mean those
    files, in any process. What is best the module says (`monitor` and `mode`), unless `checkpoint.monitor` is given.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint's options."""
        parser.add_class_arguments(RunCheckpoint, "checkpoint", instantiate=False)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and the arguments of each that are no options."""
        commands = LightningCLI.subcommands()
        commands["test"].add("verbose")  # one table is shown instead of Lightning's
        return commands | {"show": {"model", "datamodule"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.add_argument("--json", type=str | None, help="A file for means and intervals, besides the table.")
            parser.add_argument(
                "--baseline",
                type=bool | None,
                help="Test the nearest centroid of the inputs, too, and compare in pairs. By default of embeddings.",
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        """Let the configuration given win over the checkpoint's; the module names the differences when it loads."""

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder and the checkpoint to start from."""
        config = self._command_config()
        if config.trainer.default_root_dir is None:
            names = [config[key].class_path.rsplit(".", 1)[-1].lower() for key in ("model", "data")]
            config.trainer.default_root_dir = os.path.join("runs", "_".join(names))
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
            MissingFileError: It is not there.
        """
        if "://" in given:  # a remote store; Lightning opens it
            return given
        path = self._checkpoint_folder() / f"{given}.ckpt" if given in ("best", "last") else Path(given)
        if not path.is_file():
            found = sorted(str(p) for p in self._checkpoint_folder().glob("*.ckpt"))
            there = f"Checkpoints of this run: {', '.join(found)}." if found else "This run has no checkpoint yet."
            raise MissingFileError(
                f"--ckpt_path {given}: there is no file {path}. {there} A run is the folder trainer.default_root_dir="
                f"{self._command_config().trainer.default_root_dir}; leave out --ckpt_path to start afresh."
            )
        return str(path)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and save the predictions as `predictions.pt` in the run's folder: see `save_predictions`."""
        predictions = self.trainer.predict(**kwargs)
        if predictions:
            rank = f".rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            path = Path(self.trainer.default_root_dir) / f"predictions{rank}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_predictions(predictions, len(self.trainer.num_predict_batches), path)
            rank_zero_info(f"The predictions for the query sets of the test tasks are in {path}.")

    def test(self, **kwargs: Any) -> None:
        """Test, and show the result as one table; of embeddings, beside the nearest centroid on the same tasks."""
        wanted = self._command_config().baseline
        if wanted is None:
            wanted = getattr(self.datamodule, "embedded", False)
        baseline = tested_baseline(self.trainer, self.datamodule) if wanted else None
        self.trainer.test(verbose=False, **kwargs)  # the last, so that its metrics are those of the Trainer
        told = compared(type(self.model).__name__, baseline, self.trainer)
        if told is not None:
            print(told)

    def show(self, **kwargs: Any) -> None:
        """Test, and draw a page about it, beside what the network does without meta-training."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TaskFigures) and kwargs.get("ckpt_path"):
                callback.untrained = copy.deepcopy(self.model)
        self.trainer.show(**kwargs)  # type: ignore[attr-defined]

    def instantiate_classes(self) -> None:
        """Build the data module, the model with the data's number of classes, and the Trainer.

        Raises:
            ConfigurationError: What is built from the configuration refused it, with an error from outside of this
                package.
        """
        with _explained("configuration"):
            given, command = self.config, str(self.subcommand)
            keep_own_ways(given[command].data)
            only_data = Namespace({"subcommand": command, command: Namespace(data=given[command].data)})  # type: ignore[no-untyped-call]
            self.datamodule = self._get(self.parser.instantiate_classes(only_data), "data")
            self.config = given.clone()
            fill_in_ways(self.config[command].model, self.datamodule)
            # Hyperparameters are saved from this copy of the configuration, which was made before the ways were known.
            vars(self).pop("config_dump", None)
            without_data = self.config.clone()
            del without_data[command]["data"]
            self.config_init = self.parser.instantiate_classes(without_data)
            self.config_init[command].data = self.datamodule
            self.model = self._get(self.config_init, "model")
            self.config = given
            self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the Trainer with this run's checkpoints and, unless another logger is given, its CSV log."""
        config = self._get(self.config_init, "trainer")
        callbacks = config.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if config.enable_checkpointing is not False and not config.barebones:
            callbacks.append(self._checkpoint())
        if self.subcommand in ("test", "show"):
            callbacks.append(TaskResults(json=self._command_config().get("json"), name="untrained"))
        if self.subcommand == "show":
            callbacks.append(TaskFigures())
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

    def _checkpoint(self) -> RunCheckpoint:
        """The run's checkpoints; what is best the configuration says, or else the module."""
        settings = self._command_config().checkpoint.as_dict() | {"dirpath": str(self._checkpoint_folder())}
        if settings["monitor"] is None:
            of_data = getattr(self.datamodule, "monitor", None)  # where it knows more, of success say
            settings |= {"monitor": of_data or self.model.monitor, "mode": self.model.mode}
        return RunCheckpoint(**settings)


@contextmanager
def _explained(part: str) -> Iterator[None]:
    """Turn an error from outside of the package into one that names the part of the configuration.

    Raises:
        ConfigurationError: That part cannot be made.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LightningMetaError):
            raise
        raise ConfigurationError(f"{part}: {reasons(str(error))}.") from error


def main(args: ArgsType = None) -> MetaCLI | None:
    """Run the command line.

    Args:
        args: Arguments as a list of strings; those of the process if `None`.

    Returns:
        The command line object, with `trainer`, `model` and `datamodule`; `None` of a command without a Trainer.

    Raises:
        ConfigurationError: The configuration can be read, but Lightning, or what is built from it, refuses it.
        SystemExit: The configuration cannot be read; the status is 2.
    """
    given = sys.argv[1:] if args is None else args
    if isinstance(given, list) and given and given[0] in COMMANDS:
        run_command(given[0], given[1:])
        return None
    load = get_loader("yaml")
    set_loader("yaml", lambda text: qualified(load(text)), exceptions=(YAMLError,))
    try:
        return MetaCLI(
            MetaModule,
            TaskDataModule,
            trainer_class=MetaTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=MetaParser,
            parser_kwargs={"description": f"Meta-learning on PyTorch Lightning. Without a Trainer:\n{listed()}"},
            save_config_callback=RunFolder,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
        )
    except Exception as error:
        if isinstance(error, MisconfigurationException) or comes_from(error, "lightning"):
            raise ConfigurationError(f"Lightning: {' '.join(str(error).split())}") from error
        raise
    finally:
        set_loader("yaml", load, exceptions=(YAMLError,))


def console() -> None:
    """The command `lightning-meta`: the package's own errors are one line each, and the exit status is 1 then.

    The environment variable `LIGHTNING_META_TRACEBACK=1` shows them in full. Errors of others always are.
    """
    # Lightning's own use of torch, of which a user can change nothing; a test takes the averages from the checkpoint.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message=r".*WeightAveraging callback, but loading a checkpoint outside")
    try:
        main()
    except Exception as error:
        if not isinstance(error, LightningMetaError) or os.environ.get("LIGHTNING_META_TRACEBACK"):
            raise
        sys.exit(one_line(error))
