"""Pretrained networks of torchvision, timm or your own, of which the last layers are meta-learned."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_meta.errors import ArgumentTypeError, ConfigurationError, MissingFileError, first_line
from lightning_meta.models.body_and_head import BodyAndHead
from lightning_meta.models.normalize import Normalize, first_layers
from lightning_meta.models.resnet12 import check_sizes

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_FILES = (".pt", ".pth", ".bin", ".safetensors")


class Backbone(BodyAndHead):
    """A pretrained network with a new head: frozen below, meta-learned in its last layers.

    Batch normalization of the frozen layers uses what it tracked in pretraining, and nothing is dropped there, whatever
    mode the network is in; in the layers that are trained it uses the data at hand, as everywhere in meta-learning. A
    normalization belongs to the layer before it. Where all is frozen, compute the features once instead: give the
    network to a data module as its `backbone`.

    Attributes:
        body: Images `(examples, C, H, W)` in [0, 1] to features `(examples, features)`.
        head: Features to `(examples, n_way)` logits.
        layers: The names of the body's layers, of which the last are trained.

    Args:
        network: A model of torchvision (`resnet50`) or timm (`timm/convnext_tiny`), or an own one that gives features.
        weights: A name of torchvision's weights, `DEFAULT` for the best (downloaded at the first use), a file of a
            state dict, or `None` for random ones. Own networks keep theirs unless it is a file.
        n_way: Number of classes of a task.
        train_layers: How many of the last layers (blocks) are trained, 0 for none, `None` for all.
        features: How many features an own network gives, where it has no `num_features`.
        normalize: What to do first to images in [0, 1]; `None` for what the weights were trained with.

    Raises:
        ArgumentTypeError: `network` is neither a name nor an `nn.Module`.
        ConfigurationError: There is no such model or weights, they do not fit, or a number is out of its range.
        MissingFileError: The weights are not there and cannot be downloaded, or timm is not installed.

    Example:
        >>> network = Backbone("resnet18", weights=None, n_way=5, train_layers=1)
        >>> network.layers[-1], sum(p.requires_grad for p in network.body.parameters())
        ('layer4.1', 6)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        network: str | nn.Module,
        weights: str | None = "DEFAULT",
        n_way: int = 5,
        train_layers: int | None = 1,
        features: int | None = None,
        normalize: Normalize | None = None,
    ) -> None:
        check_sizes("Backbone", n_way=n_way)
        if isinstance(network, str):
            network, features, own_normalize = _by_name(network, weights)
            normalize = own_normalize if normalize is None else normalize
        elif isinstance(network, nn.Module):
            found = getattr(network, "num_features", None) if features is None else features
            if type(found) is not int or found < 1:
                raise ConfigurationError(
                    f"Give features=, the number of features that {type(network).__name__} makes of an image: the new "
                    f"head needs it. Got {found!r}."
                )
            features = found
            if weights is not None and _is_file(weights):
                _load(network, Path(weights), ())
        else:
            raise ArgumentTypeError(f"network must be the name of a model or an nn.Module, got {network!r}.")
        super().__init__(nn.Sequential(*first_layers(normalize), network, nn.Flatten()), nn.Linear(features, n_way))
        self.layers = list(dict(_layers(network)))
        self._freeze(network, train_layers)
        self.train()

    def _freeze(self, network: nn.Module, train_layers: int | None) -> None:
        if train_layers is None:
            return
        if type(train_layers) is not int or not 0 <= train_layers <= len(self.layers):
            raise ConfigurationError(
                f"train_layers must be 0 to {len(self.layers)}, the number of layers ({', '.join(self.layers[:3])}, "
                f"..., {self.layers[-1]}), or None for all; got {train_layers!r}."
            )
        network.requires_grad_(False)
        layers = dict(_layers(network))
        for name in self.layers[len(self.layers) - train_layers :]:
            for part in layers[name]:
                part.requires_grad_(True)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of what is trained; what is frozen stays in evaluation mode."""
        super().train(mode)
        _set_mode(self.body, mode, mode)
        return self


def _set_mode(module: nn.Module, mode: bool, around: bool) -> None:
    """Without parameters a layer has the mode of what it lies in."""
    own = list(module.parameters())
    module.training = mode and any(p.requires_grad for p in own) if own else around
    for child in module.children():
        _set_mode(child, mode, module.training)


def _layers(network: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """The layers of a network in their order, by the name of the first module of each."""
    found: dict[str, list[nn.Module]] = {}
    for name, module in _parts(network, ""):
        if found and all(p.dim() <= 1 or p[0].numel() == 1 for p in module.parameters()):  # a norm, or scales
            found[next(reversed(found))].append(module)
        else:
            found[name] = [module]
    yield from found.items()


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules with parameters; stacks of blocks, and what has one in it, are taken apart."""
    children = [(name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None]
    is_root = not prefix
    if not children or not (is_root or _is_stack(module) or any(_is_long(child) for _, child in children)):
        yield prefix.removesuffix(".") or "network", module
        return
    for name, child in children:
        yield from _parts(child, f"{prefix}{name}.")


def _is_stack(module: nn.Module) -> bool:
    return type(module) in (nn.Sequential, nn.ModuleList)


def _is_long(module: nn.Module) -> bool:
    """Whether this is a stack of several blocks of one kind."""
    return _is_stack(module) and len({type(child) for child in module.children()}) == 1 < len(list(module.children()))


def _by_name(name: str, weights: str | None) -> tuple[nn.Module, int, Normalize]:
    """A model without its head, the number of its features, and how its images were normalized."""
    from torchvision import models

    known = models.list_models(models)
    if name in known:
        return _of_torchvision(name, weights)
    own = name.removeprefix("timm/")
    try:
        import timm
    except ImportError as error:
        near = get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near and own == name else ""
        raise MissingFileError(
            f"torchvision has no model {name!r}.{hint} For one of timm, pip install lightning-meta[timm]."
        ) from error
    if not timm.is_model(own):
        near = get_close_matches(own, [*known, *timm.list_models()], 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"Neither torchvision nor timm has a model {name!r}.{hint}")
    return _of_timm(timm, own, weights)


def _of_torchvision(name: str, weights: str | None) -> tuple[nn.Module, int, Normalize]:
    from torchvision import models

    normalize, chosen, path = _IMAGENET, None, None
    if weights is not None and _is_file(weights):
        path = Path(weights)
    elif weights is not None:
        every = models.get_model_weights(name)
        if weights not in every.__members__:
            raise ConfigurationError(f"{name} has no weights {weights!r}: give a file, None, or one of {', '.join(every.__members__)}.")  # fmt: skip  # noqa: E501
        chosen = every[weights]
        transforms = chosen.transforms()
        normalize = (getattr(transforms, "mean", normalize[0]), getattr(transforms, "std", normalize[1]))
    network: nn.Module = _made(name, lambda: models.get_model(name, weights=chosen), chosen is not None)
    for part in ("aux1", "aux2", "AuxLogits"):  # further heads
        if hasattr(network, part):
            setattr(network, part, None)
            network.aux_logits = False  # type: ignore[assignment]
    linear = [(key, layer) for key, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ConfigurationError(
            f"{name} has no linear head to replace. Give what is below it as a network of your own."
        )
    key, head = linear[-1]
    parent, _, last = key.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    if path is not None:
        _load(network, path, (f"{key}.", "aux1.", "aux2.", "AuxLogits."))
        if hasattr(network, "transform_input"):  # torchvision's pretrained ones have it, and the file is of such
            network.transform_input = True  # type: ignore[assignment]
    return network, head.in_features, Normalize(*normalize)


def _of_timm(timm: Any, name: str, weights: str | None) -> tuple[nn.Module, int, Normalize]:
    path = Path(weights) if weights is not None and _is_file(weights) else None
    if path is None and weights not in (None, "DEFAULT"):
        raise ConfigurationError(f"weights of timm's {name} must be DEFAULT, a file or None, got {weights!r}.")
    pretrained = path is None and weights == "DEFAULT"
    network: nn.Module = _made(name, lambda: timm.create_model(name, pretrained=pretrained, num_classes=0), pretrained)
    about: Any = getattr(network, "pretrained_cfg", None) or {}
    if path is not None:
        heads = about.get("classifier") or "head"
        _load(network, path, tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads)))
    size: Any = getattr(network, "head_hidden_size", None) or network.num_features
    return network, int(size), Normalize(about.get("mean", _IMAGENET[0]), about.get("std", _IMAGENET[1]))


def _is_file(weights: str) -> bool:
    return Path(weights).suffix in _FILES or Path(weights).is_file()


def _made(name: str, make: Callable[[], nn.Module], downloads: bool) -> nn.Module:
    try:
        return make()
    except (OSError, RuntimeError) as error:  # hubs raise both
        if not downloads:
            raise
        raise MissingFileError(
            f"The weights of {name} are not on this machine and cannot be downloaded: {first_line(error)}. Give a file "
            "as weights, or weights=None for random ones."
        ) from error


def _load(network: nn.Module, path: Path, without: tuple[str, ...]) -> None:
    """Read a state dict into a network; keys that begin with one of `without` are left out."""
    if not path.is_file():
        raise MissingFileError(f"There is no file of weights {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise MissingFileError(f"{path} needs safetensors: pip install safetensors.") from error
    except Exception as error:  # whatever a broken file makes torch raise
        raise ConfigurationError(f"{path} holds no state dict that can be read: {first_line(error)}.") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith(without)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reasons = " ".join(str(error).split())[:300]
        raise ConfigurationError(f"{path} does not fit {type(network).__name__}: {reasons}") from error
