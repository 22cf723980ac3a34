"""Features of a frozen network."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import Subset
from torchvision.models import resnet18

from lightning_meta import (
    Backbone,
    CIFARFSDataModule,
    Conv4,
    FC100DataModule,
    ImageFolderDataModule,
    MAMLModule,
    MiniImageNetDataModule,
    ProtoNetModule,
    TieredImageNetDataModule,
)
from lightning_meta.cli.main import main
from lightning_meta.datamodules.labelled import base_of
from lightning_meta.datasets import ClassDataset, encode_images, features, glyphs
from lightning_meta.errors import ArgumentTypeError, ConfigurationError
from tests.cli.test_main import QUIET
from tests.datamodules.test_image_folder import SMALL, photos
from tests.modules.test_maml import trainer


def images(seed=0, count=150):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ClassDataset(pixels, torch.arange(count) % 5, list("abcde"))


def network(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    body[1].running_mean.normal_()
    return Backbone(body, features=6, train_layers=0)


@pytest.fixture
def runs(monkeypatch):
    """How often features were computed."""
    found, own = [], features._encode
    monkeypatch.setattr(features, "_encode", lambda *args: found.append(1) or own(*args))
    return found


def test_features_are_those_of_each_image_in_evaluation_mode(tmp_path):
    data, net = images(), network()
    before = {layer: layer.training for layer in net.body.modules()}
    found = encode_images(Subset(Subset(data, range(100, 150)), [3, 40]), net, cache=tmp_path)
    expected = copy.deepcopy(net).eval().body(data.inputs[[103, 140]].float() / 255)
    assert torch.allclose(torch.stack([found[0][0], found[1][0]]), expected, atol=1e-6)
    assert [found[i][1] for i in range(2)] == [103 % 5, 140 % 5]
    assert base_of(found).classes == list("abcde")
    assert {layer: layer.training for layer in net.body.modules()} == before


def test_features_are_computed_once_for_the_same_data_and_weights(tmp_path, runs):
    first = encode_images(images(), network(), cache=tmp_path)
    assert torch.equal(encode_images(images(), network(), cache=tmp_path).inputs, first.inputs)
    assert len(runs) == 1
    changed = network()
    with torch.no_grad():
        changed.body[0][1].running_var[3] = 2.0  # one number of a buffer
    for data, net in ((images(1), network()), (images(), network(1)), (images(), changed)):
        assert not torch.equal(encode_images(data, net, cache=tmp_path).inputs, first.inputs)
    assert len(runs) == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_an_interrupt_leaves_nothing(tmp_path):
    net = network().body
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    net.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        encode_images(images(), net, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_data_module_gives_features_in_the_place_of_images(tmp_path, runs):
    photos(tmp_path / "photos", [f"class{i}" for i in range(10)])
    options = SMALL | {"test_tasks": 4, "val_tasks": 2}

    def module(**more):
        cache = str(tmp_path / "cache")
        return ImageFolderDataModule(str(tmp_path / "photos"), cache=cache, **options | more)

    net = network()
    plain, data = module(), module(backbone=net)
    plain.setup()
    data.prepare_data()
    data.setup()
    assert len(runs) == 1
    assert data.split_classes == plain.split_classes
    for found, shown in zip(data.test_dataloader(), plain.test_dataloader(), strict=True):
        for part, other in zip(found, shown, strict=True):
            assert part.inputs.dtype == torch.float32
            with torch.no_grad():
                expected = net.eval().body(other.inputs.flatten(0, 1))
            assert torch.allclose(part.inputs.flatten(0, 1), expected, atol=1e-5)
            assert torch.equal(part.targets, other.targets)
    # The same accuracy as of the network on images.
    by_image, by_feature = ProtoNetModule(net), ProtoNetModule(nn.Identity())
    results = [
        trainer().test(m, d, verbose=False)[0]["test/query_accuracy"]
        for m, d in ((by_image, plain), (by_feature, data))
    ]
    assert results[0] == pytest.approx(results[1])
    trainer(tmp_path / "run").fit(MAMLModule(nn.Linear(6, 2), inner_lr=0.1), module(backbone=net))
    assert len(runs) == 1


def test_what_cannot_be_encoded_is_refused(tmp_path):
    photos(tmp_path / "photos", ["a", "b", "c"])
    with pytest.raises(ConfigurationError, match=r"computed once, so that transforms.*Leave out either"):
        ImageFolderDataModule(str(tmp_path), backbone=network(), train_transform=nn.Identity())
    with pytest.raises(ArgumentTypeError, match=r"backbone must be an nn\.Module, got 'resnet18'"):
        ImageFolderDataModule(str(tmp_path), backbone="resnet18")
    with pytest.raises(ConfigurationError, match=r"a vector for each example.* gives \(64, 6, 6, 6\)"):
        encode_images(images(), network().body[0][:1], cache=tmp_path)
    with pytest.raises(ArgumentTypeError, match="only data held as one tensor"):
        encode_images(photos, network(), cache=tmp_path)


def test_a_backbone_in_yaml(tmp_path):
    photos(tmp_path / "photos", [f"class{i}" for i in range(10)], each=5)
    torch.manual_seed(0)
    weights = {n: t for n, t in resnet18().state_dict().items() if not n.startswith("fc.")}
    torch.save(weights, tmp_path / "weights.pt")
    (tmp_path / "run.yaml").write_text(f"""
trainer: {{max_epochs: 1, default_root_dir: {tmp_path / "run"}}}
model:
  class_path: MAMLModule
  init_args:
    inner_lr: 0.1
    network: {{class_path: MLP, init_args: {{in_features: 512, out_features: 2, hidden: [8]}}}}
data:
  class_path: ImageFolderDataModule
  init_args:
    root: {tmp_path / "photos"}
    cache: {tmp_path / "cache"}
    image_size: 32
    n_way: 2
    n_query: 2
    meta_batch_size: 2
    steps_per_epoch: 2
    val_tasks: 2
    test_tasks: 2
    backbone:
      class_path: Backbone
      init_args: {{network: resnet18, weights: {tmp_path / "weights.pt"}, train_layers: 0}}
""")
    fitted = main(["fit", "--config", str(tmp_path / "run.yaml"), *QUIET])
    (cached,) = (path for path in (tmp_path / "cache").glob("*-*.npy"))
    found = base_of(fitted.datamodule.datasets["train"]).inputs
    assert found.shape == (50, 512)
    tested = main(["test", "--config", str(tmp_path / "run" / "config.yaml"), "--ckpt_path", "best", *QUIET])
    assert "test/query_accuracy" in tested.trainer.callback_metrics
    assert cached.exists()
    assert len(list((tmp_path / "cache").glob("*-*.npy"))) == 1


def test_features_that_would_depend_on_their_neighbours_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"the layer '.*' of the backbone normalizes by the batch at hand"):
        encode_images(glyphs(range(3)), Conv4(5, hidden=4), cache=tmp_path)


def test_another_scale_is_another_file(tmp_path):
    pixels, body = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), nn.Flatten()
    found = [encode_images(ClassDataset(pixels, [0, 1], scale=s), body, cache=tmp_path) for s in (None, 1.0)]
    assert [float(each.inputs.max()) for each in found] == [1.0, 255.0]


@pytest.mark.parametrize("kind", [CIFARFSDataModule, FC100DataModule, MiniImageNetDataModule, TieredImageNetDataModule])
def test_data_modules_say_that_their_inputs_are_embeddings(kind):
    assert kind("nowhere", backbone=network()).embedded
    assert not kind("nowhere").embedded
