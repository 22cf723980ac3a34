"""The commands `adapt` and `classify`: from a few images of each class to a model that tells them apart."""

import argparse
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_meta.datasets.image_folder import EXTENSIONS, list_folders, read_image
from lightning_meta.errors import CheckpointError, ConfigurationError, DataError, MissingFileError, first_line
from lightning_meta.export import export_network, load_exported
from lightning_meta.modules import MetaModule
from lightning_meta.modules.checkpoints import readable


def add_adapt_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `adapt`."""
    parser.add_argument("--ckpt_path", required=True, help="The checkpoint of a run of the command line.")
    parser.add_argument("--support", required=True, help="A folder with a folder of images for each class.")
    parser.add_argument("--out", default="model.pt2", help="The model to write, .pt2 or .onnx. Default: model.pt2.")
    parser.add_argument("--steps", type=int, help="Inner steps. Default: as many as in evaluation.")
    parser.add_argument("--image_size", type=int, help="Height and width. Default: that of the data trained on.")
    parser.add_argument("--grayscale", action="store_true", default=None, help="One channel. Default: as trained.")


def adapt(options: argparse.Namespace) -> None:
    """Adapt a meta-trained module to a folder of images, and write the model.

    Raises:
        MissingFileError: There is no such checkpoint or folder.
        CheckpointError: The checkpoint cannot be read.
        ConfigurationError: It is of a policy, the size of the images is not known, or there are too many classes.
        DataError: An image cannot be read.
    """
    path = Path(options.ckpt_path)
    if not path.is_file():
        raise MissingFileError(f"--ckpt_path {path}: there is no such file.")
    with readable(path):
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    kind = _module_class(checkpoint, path)
    if kind.collect is not MetaModule.collect:
        raise ConfigurationError(
            f"{path} is of {kind.__name__}, which adapts by acting, not to images. In Python: "
            f"{kind.__name__}.load_from_checkpoint({str(path)!r}).adapt_to(environment)."
        )
    module = kind.load_from_checkpoint(path, map_location="cpu")
    about = _about_images(options, checkpoint)
    files = list_folders(Path(options.support))
    inputs = _read([Path(path) for path in files.paths], about)
    head = getattr(module.network, "head", None) if module.task_map.names else None
    outputs = getattr(head, "out_features", len(files.classes))
    if outputs < len(files.classes):
        raise ConfigurationError(
            f"{options.support} has {len(files.classes)} classes, but the network tells {outputs} apart. Leave some "
            f"out, or train with n_way={len(files.classes)}."
        )
    network = module.adapt_to(inputs, torch.tensor(files.targets), options.steps)
    export_network(network, options.out, inputs, files.classes, about)
    print(f"{type(module).__name__} adapted to {len(inputs)} images of {', '.join(files.classes)}: {options.out}")


def _module_class(checkpoint: dict[str, Any], path: Path) -> type[MetaModule]:
    """The class of the module that a checkpoint is of."""
    name = checkpoint.get("hyper_parameters", {}).get("_class_path")
    if name is None:
        raise CheckpointError(
            f"{path} does not say what it is of, since its training was started from a script. Adapt it there: "
            "load_from_checkpoint(path, network=...).adapt_to(inputs, targets), and then export_network."
        )
    try:
        found = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is of the class {name}, which cannot be imported here: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, MetaModule)):
        raise CheckpointError(f"{path} is of {name}, which is no module of this package.")
    return found


def _about_images(options: argparse.Namespace, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The images' size, whether they are gray, and their transform: what is given, else as in the training's tests."""
    of_data = checkpoint.get("datamodule_hyper_parameters", {})
    size = options.image_size or of_data.get("image_size")
    if size is None:
        raise ConfigurationError(
            f"{options.ckpt_path} does not say how large the images are that it was trained on. Give --image_size, "
            "and --grayscale where they have one channel."
        )
    grayscale = of_data.get("grayscale", False) if options.grayscale is None else options.grayscale
    return {
        "image_size": int(size),
        "grayscale": bool(grayscale),
        "transform": of_data.get("eval_transform"),
    }


def add_classify_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `classify`."""
    parser.add_argument("--model", default="model.pt2", help="What `adapt` has written, .pt2. Default: model.pt2.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Images, or folders of images.")


def classify(options: argparse.Namespace) -> None:
    """Print for each image the class and its probability, divided by tabs.

    Raises:
        MissingFileError: There is no such model or image.
        DataError: The model or an image cannot be read.
    """
    model = load_exported(options.model)
    if "image_size" not in model.about:
        raise DataError(f"{options.model} is no model of images that `lightning-meta adapt` has written.")
    paths = [path for given in options.images for path in _images(Path(given))]
    for path in paths:  # one by one, so that a folder may be of any size
        logits = model.network(_read([path], model.about))
        probability, label = (found.item() for found in logits.softmax(-1)[0].max(0))
        name = model.classes[int(label)] if model.classes and label < len(model.classes) else str(label)
        print(f"{path}\t{name}\t{probability:.3f}")


def _images(given: Path) -> list[Path]:
    if given.is_dir():
        found = sorted(path for path in given.iterdir() if path.suffix.lower() in EXTENSIONS)
        if not found:
            raise MissingFileError(f"{given} holds no images.")
        return found
    if not given.is_file():
        raise MissingFileError(f"There is no image {given}.")
    return [given]


def _read(paths: list[Path], about: dict[str, Any]) -> Tensor:
    """Images `(examples, C, H, W)` as the network takes them: in [0, 1], and then transformed."""
    images = []
    for path in paths:
        try:
            images.append(torch.from_numpy(read_image(path, about["image_size"], about["grayscale"])) / 255)
        except Exception as error:  # whatever a broken file makes a decoder raise
            raise DataError(f"{path} cannot be read: {first_line(error)}.") from error
    if about["transform"] is None:
        return torch.stack(images)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--transform", type=Callable[[Any], Any])
    transform = parser.instantiate_classes(parser.parse_object({"transform": about["transform"]})).transform
    return torch.stack([transform(image) for image in images])
