"""Frozen parameters that a checkpoint leaves out, since they are loaded again from where they came."""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.errors import CheckpointError

STATES = {"state_dict", "current_model_state"}
"""Where a checkpoint has parameters; the second is that of Lightning's averages, which are in the first."""


class _Frozen(NamedTuple):
    name: str
    tensor: Tensor


def leave_out(module: nn.Module, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Take the frozen parameters out of a checkpoint.

    Returns:
        Their names, their types, and a digest of their values, by which `put_back` knows them again.
    """
    own = _frozen(module)
    names = {each.name for each in own}
    for key in STATES & checkpoint.keys():
        checkpoint[key] = {name: tensor for name, tensor in checkpoint[key].items() if name not in names}
    types = {each.name: str(each.tensor.dtype).removeprefix("torch.") for each in own}
    return {"types": types, "digest": _digest(own)}


def put_back(module: nn.Module, checkpoint: dict[str, Any], left_out: dict[str, Any] | None) -> None:
    """Complete a checkpoint by the module's own parameters, where it leaves them out.

    Raises:
        CheckpointError: They are not those that were left out.
    """
    if left_out is None:
        return
    own = {each.name: each.tensor for each in _all(module)}
    types: dict[str, str] = left_out["types"]
    missing = sorted(types.keys() - own.keys())
    found = [_Frozen(name, own[name].to(getattr(torch, kind))) for name, kind in types.items() if name in own]
    if missing or _digest(found) != left_out["digest"]:
        what = f"has no {missing[0]}" if missing else "has other values there"
        raise CheckpointError(
            f"The checkpoint leaves out {len(types)} frozen parameters (save_frozen=False), such as "
            f"{next(iter(types))}, and this {type(module).__name__} {what}. Make its network of the same pretrained "
            "weights as in training."
        )
    for key in STATES & checkpoint.keys():
        checkpoint[key] = checkpoint[key] | {name: own[name] for name in types}


def _all(module: nn.Module) -> list[_Frozen]:
    """Every parameter under each of its names, as in the state of a module."""
    return [_Frozen(name, p.detach()) for name, p in module.named_parameters(remove_duplicate=False)]


def _frozen(module: nn.Module) -> list[_Frozen]:
    own = dict(module.named_parameters(remove_duplicate=False))
    return [each for each in _all(module) if not own[each.name].requires_grad]


def _digest(frozen: list[_Frozen]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(frozen):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
