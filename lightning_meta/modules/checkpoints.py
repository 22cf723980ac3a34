"""Checkpoints: written whole or not at all, read without running code, and compared with the module they are for."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_meta.errors import CheckpointError, first_line
from lightning_meta.files import write_atomically
from lightning_meta.hyperparameters import differences, is_plain
from lightning_meta.modules import frozen
from lightning_meta.randomness import global_state, set_global_state
from lightning_meta.task import map_tensors

if TYPE_CHECKING:
    from lightning_meta.modules.meta_module import MetaModule


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
            write_atomically(path, buffer.getbuffer())
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
        if isinstance(error, TypeError) and "'network'" in text and "missing" in text:
            raise CheckpointError(
                f"{path} has no description of the network, which a checkpoint of the command line has. Give it: "
                "load_from_checkpoint(path, network=...)."
            ) from error
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


def objects(module: "MetaModule") -> dict[str, str]:
    """The loss, the inner optimizer and others that are not plain hyperparameters, described in words."""
    described = {"loss": getattr(module.loss, "__qualname__", str(module.loss))}
    optimizer = getattr(module.algorithm, "inner_optimizer", None)
    if optimizer is not None:
        described["inner_optimizer"] = f"{type(optimizer).__name__}({optimizer.extra_repr()})"
    return described


def described(module: "MetaModule", optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What a logger is told besides plain hyperparameters, which know nothing of objects given in a script."""
    parameters = sum(p.numel() for p in module.network.parameters())
    found: dict[str, Any] = {"network": type(module.network).__name__, "network_parameters": parameters}
    for optimizer in optimizers:
        settings = ", ".join(f"{k}={v}" for k, v in optimizer.defaults.items() if is_plain(v) and v is not None)
        found["optimizer"] = f"{type(optimizer).__name__}({settings})"
    found |= objects(module)
    return {name: value for name, value in found.items() if module.hparams.get(name) is None}


def save(module: "MetaModule", checkpoint: dict[str, Any]) -> None:
    """Add to a checkpoint what a training needs to go on exactly, and what it is made of; once."""
    if "meta" in checkpoint:
        return
    carried = module.algorithm.carried()
    checkpoint["meta"] = {
        "objects": objects(module),
        "seed": module.outer.seed,
        "random_state": global_state(),
        "skipped_steps": module.outer.skipped,
        "totals": module.outer.totals,
        "tasks_together": module.outer.tasks_together,
        "vectorizes": module.task_map.vectorizes,
        "carried": None if carried is None else map_tensors(lambda t: t.detach().cpu(), carried),
        "left_out": None if module.save_frozen else frozen.leave_out(module, checkpoint),
    }


def load(module: "MetaModule", checkpoint: dict[str, Any]) -> None:
    """Name the hyperparameters in which a checkpoint differs, and go on from it.

    Raises:
        CheckpointError: The checkpoint's parameters are not those of the module.
    """
    check_is_checkpoint(checkpoint)
    kept: dict[str, Any] = checkpoint.get("meta", {})
    changed = differences(checkpoint.get("hyper_parameters", {}), module.hparams)
    changed += differences(kept.get("objects", {}), objects(module))
    datamodule = getattr(module._trainer, "datamodule", None)
    if datamodule is not None:
        changed += differences(checkpoint.get("datamodule_hyper_parameters", {}), datamodule.hparams)
    frozen.put_back(module, checkpoint, kept.get("left_out"))
    misfits = _misfits(module.state_dict(), checkpoint["state_dict"])
    if misfits and module.strict_loading:
        reason = (
            "It was written with other hyperparameters:\n  " + "\n  ".join(changed)
            if changed
            else "No hyperparameter differs, so it is the network itself, or an object that cannot be stored."
        )
        raise CheckpointError(
            f"The checkpoint does not fit this {type(module).__name__}: {'; '.join(misfits)}. {reason}"
        )
    if module._trainer is not None:
        # Lightning would load into float32, and convert to float64 afterwards.
        module._trainer.precision_plugin.convert_module(module)
    if changed:
        rank_zero_warn(
            "The checkpoint was written with other hyperparameters; those of now are used (but a training that is "
            "resumed restores the state of its optimizer and its schedule):\n  " + "\n  ".join(changed)
        )
    if not module.algorithm.restore(kept.get("carried"), module.network):
        rank_zero_warn("The checkpoint's inner state is that of another inner optimizer; a fresh one is used.")
    module.outer.seed = kept.get("seed", module.outer.seed)
    module.outer.skipped = kept.get("skipped_steps", 0)
    module.outer.totals = dict(kept.get("totals", {}))
    module.task_map.vectorizes = kept.get("vectorizes", True)
    module.outer.random_state = kept.get("random_state")


def go_on(module: "MetaModule") -> None:
    """Go on with the random numbers where the checkpoint left them."""
    if module.outer.random_state is not None:
        set_global_state(module.outer.random_state)
        module.outer.random_state = None


def _misfits(own: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """What of a checkpoint's parameters and buffers the module does not have, lacks, or has in another shape."""
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


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
