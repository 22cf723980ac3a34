"""Checkpoints: written whole or not at all, read without running code, and compared with the module they are for."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lightning_meta.errors import first_line
from lightning_meta.hyperparameters import PlainHyperparameters, differences
from lightning_meta.randomness import global_state, set_global_state

if TYPE_CHECKING:
    from typing_extensions import Self


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, cannot be read, or does not fit the module."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint into a temporary file beside its target, and puts it into place in one move.

    Whenever the process dies, the target is the old checkpoint or the new one, complete. Remote paths (`s3://...`) are
    left to Lightning. Modules put it in the place of the Trainer's default; it can also be given as a plugin:
    `Trainer(plugins=[AtomicCheckpointIO()])`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: It cannot be written; the file that was there before stays as it is.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, buffer.getbuffer())
        except OSError as error:
            before = "The file that was there before is as it was." if path.is_file() else "There was none before."
            raise CheckpointError(
                f"The checkpoint {path} cannot be written: {error.strerror or error}. {before} Make room, or give "
                "another folder."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint. Only tensors and plain values are read, unless `weights_only` is `False`.

        Raises:
            CheckpointError: It is truncated, no checkpoint, or holds objects.
            FileNotFoundError: It is not there.
        """
        with readable(path):
            checkpoint = super().load_checkpoint(path, map_location, weights_only is not False)
            check_is_checkpoint(checkpoint)
        return checkpoint


def _replace(path: Path, content: memoryview) -> None:
    """Put a file with this content in the place of `path`, in one move and for good."""
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False)  # noqa: SIM115
    try:
        with file:
            os.chmod(file.name, 0o666 & ~_umask())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException:
        os.unlink(file.name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def readable(path: Any) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is read into an error that says what the file is.

    Raises:
        CheckpointError: See there.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError, CheckpointError):
        raise
    except Exception as error:
        text = str(error)
        if "weights_only" in text or "Unsupported global" in text:
            raise CheckpointError(
                f"The checkpoint {path} holds objects, and to load those could run any code: "
                f"{first_line(error)} If you trust whoever wrote it, give weights_only=False."
            ) from error
        if isinstance(error, KeyError) and "pytorch-lightning_version" in text:
            raise CheckpointError(f"{path} is no checkpoint of Lightning: it does not say of which version.") from error
        if isinstance(error, ValueError | TypeError | KeyError | AttributeError):  # made of what was read well
            raise
        raise CheckpointError(
            f"{path} cannot be read: it is truncated, or no checkpoint of Lightning ({first_line(error)})."
        ) from error


def check_is_checkpoint(checkpoint: Any) -> None:
    """Refuse what `torch.load` reads but Lightning did not write.

    Raises:
        CheckpointError: It is something else.
    """
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        found = f"the keys {', '.join(map(str, list(checkpoint)[:5]))}" if isinstance(checkpoint, dict) else "no keys"
        raise CheckpointError(
            f"The file is no checkpoint of Lightning: it has no state_dict, but {found}. For weights saved on their "
            "own use module.network.load_state_dict."
        )


class CheckpointedModule(PlainHyperparameters, pl.LightningModule):
    """A module whose checkpoints say how they came about, and that can be resumed exactly."""

    seed: int | None = None
    """What random numbers in training follow from, with the outer step and the rank: `torch.initial_seed()` at the
    first start of the training."""

    _random_state: dict[str, Any] | None = None

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> "Self":
        """Rebuild a module from a checkpoint: see Lightning.

        Args:
            checkpoint_path: The file.
            map_location: See Lightning, and so for the next two.
            hparams_file: A file of hyperparameters.
            strict: Whether the parameters have to fit exactly.
            weights_only: Whether to read tensors and plain values only; other objects can run code.
            kwargs: Arguments of the module, which win over those that were saved: of a script's run those that are no
                plain values, such as `network`.

        Raises:
            CheckpointError: The file is truncated, no checkpoint, holds objects, or does not fit the module.
        """
        with readable(checkpoint_path):
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
            )

    def objects(self) -> dict[str, str]:
        """Objects that are no plain hyperparameters, described in words."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the objects, so that loading with others does not go unnoticed; keep the random numbers' state."""
        checkpoint["objects"] = self.objects()
        checkpoint["seed"] = self.seed
        checkpoint["random_state"] = global_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the hyperparameters in which a checkpoint differs; those given now are used.

        Raises:
            CheckpointError: The checkpoint's parameters are not those of this module.
        """
        check_is_checkpoint(checkpoint)
        changed = differences(checkpoint.get("hyper_parameters", {}), self.hparams)
        changed += differences(checkpoint.get("objects", {}), self.objects())
        datamodule = getattr(self._trainer, "datamodule", None)
        if datamodule is not None:
            changed += differences(checkpoint.get("datamodule_hyper_parameters", {}), datamodule.hparams)
        misfits = self._misfits(checkpoint["state_dict"])
        if misfits and self.strict_loading:
            reason = (
                "It was written with other hyperparameters:\n  " + "\n  ".join(changed)
                if changed
                else ("No hyperparameter differs, so it is the network itself, or what is no plain value.")
            )
            raise CheckpointError(
                f"The checkpoint does not fit this {type(self).__name__}: {'; '.join(misfits)}. {reason}"
            )
        if self._trainer is not None:
            # Lightning would load into float32, and convert to float64 afterwards.
            self._trainer.precision_plugin.convert_module(self)
        if changed:
            rank_zero_warn(
                "The checkpoint was written with other hyperparameters; those of now are used (but a training that is "
                "resumed restores the state of its optimizer and its schedule):\n  " + "\n  ".join(changed)
            )
        self.seed = checkpoint.get("seed", self.seed)
        self._random_state = checkpoint.get("random_state")

    def _misfits(self, saved: dict[str, Any]) -> list[str]:
        """What of a checkpoint's parameters and buffers this module does not have, lacks, or has in another shape."""
        own = self.state_dict()
        missing, unknown = (sorted(a.keys() - b.keys()) for a, b in ((own, saved), (saved, own)))
        shapes = [
            f"{name} is {tuple(saved[name].shape)} there and {tuple(tensor.shape)} here"
            for name, tensor in own.items()
            if name in saved and saved[name].shape != tensor.shape
        ]
        found = []
        if missing:
            found.append(f"it lacks {_listed(missing)}")
        if unknown:
            found.append(f"it has {_listed(unknown)}, which this module has not")
        return found + ([_listed(shapes)] if shapes else [])

    def on_train_start(self) -> None:
        """Go on with the random numbers where the checkpoint left them."""
        if self._random_state is not None:
            set_global_state(self._random_state)
            self._random_state = None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
