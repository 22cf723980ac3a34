"""Pretrained networks, frozen below."""

import copy
import importlib.util

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lightning_meta import Backbone, MAMLModule, Normalize, ProtoNetModule
from lightning_meta.errors import ArgumentTypeError, ConfigurationError, MissingFileError
from lightning_meta.testing import check_algorithm
from tests.conftest import image_tasks, meta_gradient_by_hand, relative_error

HAS_TIMM = importlib.util.find_spec("timm") is not None


def stack(seed=0):
    """An own network of four layers, whose batch norms have tracked something."""
    torch.manual_seed(seed)
    blocks = [
        nn.Sequential(nn.Conv2d(3 if not i else 4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        for i in range(3)
    ]
    network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return network


@pytest.mark.parametrize("train_layers", [0, 1])
def test_resnet18_has_the_meta_gradient_of_a_loop_by_hand(train_layers):
    torch.manual_seed(0)
    network = Backbone("resnet18", weights=None, n_way=3, train_layers=train_layers).double()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    tasks = image_tasks(tasks=2, n_way=3, k_shot=1, n_query=1, channels=3, size=32)
    reference = copy.deepcopy(network)
    module = MAMLModule(network, inner_lr=0.05, inner_steps=2)
    module.meta_loss(tasks).backward()
    expected = meta_gradient_by_hand(reference, tasks, 0.05)
    assert len(expected) == 2 + 6 * train_layers
    found = [p.grad for p in network.parameters() if p.requires_grad]
    assert relative_error(found, expected) < 1e-9
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)


def test_own_networks_keep_what_every_algorithm_keeps():
    backbone = Backbone(stack(), n_way=3, features=4).double()
    backbone.body[0][2][3].p = 0.0  # what is drawn differs between tasks together and one after another
    tasks = image_tasks(tasks=3, channels=3, size=6)
    check_algorithm(MAMLModule(backbone, inner_lr=0.1, inner_steps=2), tasks)
    check_algorithm(ProtoNetModule(backbone), tasks)


def test_what_is_frozen_keeps_its_statistics_and_drops_nothing():
    network = Backbone(stack(), n_way=3, train_layers=1, features=4)
    inner = network.body[0]
    assert network.layers == ["0.0", "1.0", "2.0"]
    assert [p.requires_grad for p in inner[1].parameters()] == [False] * 4
    assert [p.requires_grad for p in inner[2].parameters()] == [True] * 4
    for _ in range(2):
        assert [inner[i][3].training for i in range(3)] == [False, False, True]
        assert [inner[i][1].training for i in range(3)] == [False, False, True]
        network.eval()
        assert not any(layer.training for layer in network.body.modules())
        network.train()
    before = copy.deepcopy(network.state_dict())
    images = torch.rand(4, 3, 6, 6)
    frozen = inner[:2](images)
    expected = stack()[:2].eval()(images)
    assert torch.equal(frozen, expected)
    module = MAMLModule(network, inner_lr=0.1)
    module.meta_loss(image_tasks(channels=3, dtype=torch.float32)).backward()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad for p in Backbone(stack(), train_layers=None, features=4).parameters())
    whole = Backbone(stack(), train_layers=0, features=4)
    assert not any(p.requires_grad for p in whole.body.parameters())
    assert not any(layer.training for layer in whole.body[0].modules())


@pytest.mark.parametrize(
    ("name", "count", "last", "features"),
    [
        ("resnet18", 9, "layer4.1", 512),
        ("resnet50", 17, "layer4.2", 2048),
        ("vit_b_16", 13, "encoder.layers.encoder_layer_11", 768),
        ("convnext_tiny", 22, "features.7.2", 768),
        ("mobilenet_v2", 19, "features.18", 1280),
        ("swin_t", 16, "features.7.1", 768),
        ("timm/vit_tiny_patch16_224", 13, "blocks.11", 192),
        ("timm/resnet18", 9, "layer4.1", 512),
    ],
)
def test_layers_of_models_by_name(name, count, last, features):
    if name.startswith("timm/") and not HAS_TIMM:
        pytest.skip("timm is not installed")
    with torch.device("meta"):
        network = Backbone(name, weights=None)
        assert (len(network.layers), network.layers[-1], network.head.in_features) == (count, last, features)
        size = 224 if "vit" in name else 64
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 5)
    trained = {n for n, p in network.body.named_parameters() if p.requires_grad}
    # The last block, and a norm after it.
    assert any(n.startswith(f"1.{last}.") for n in trained)
    assert all(n.startswith((f"1.{last}.", "1.encoder.ln", "1.norm", "1.fc_norm", "1.classifier.0")) for n in trained)


def test_weights_are_a_file(tmp_path):
    torch.manual_seed(1)
    own = resnet18(num_classes=7)  # of another head
    own.layer1[0].bn1.running_mean.uniform_()
    torch.save(own.state_dict(), tmp_path / "own.pt")
    torch.save({"state_dict": {f"module.{n}": t for n, t in own.state_dict().items()}}, tmp_path / "wrapped.pth")
    files = ["own.pt", "wrapped.pth"]
    if importlib.util.find_spec("safetensors") is not None:
        from safetensors.torch import save_file

        save_file({n: t.contiguous() for n, t in own.state_dict().items()}, tmp_path / "own.safetensors")
        files.append("own.safetensors")
    own.fc = nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    normalized = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(images)
    for file in files:
        network = Backbone("resnet18", weights=str(tmp_path / file), train_layers=0)
        assert torch.allclose(network.body(images), own.eval()(normalized), atol=1e-5)
    plain = Backbone("resnet18", weights=str(tmp_path / "own.pt"), normalize=Normalize([0.0], [1.0]), train_layers=0)
    assert torch.allclose(plain.body(images), own(images), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Backbone("resnet18", None, train_layers=10),
            ConfigurationError,
            "train_layers must be 0 to 9.*layer4.1",
        ),
        (lambda: Backbone("resnet18", None, n_way=0), ConfigurationError, "n_way to be a whole number"),
        (lambda: Backbone("resnet18", "IMAGENET9"), ConfigurationError, "no weights 'IMAGENET9'.*IMAGENET1K_V1"),
        (lambda: Backbone("resnet18", "nowhere.pt"), MissingFileError, "no file of weights nowhere.pt"),
        (lambda: Backbone("squeezenet1_0", None), ConfigurationError, "no linear head"),
        (lambda: Backbone(nn.Linear(3, 4)), ConfigurationError, "Give features="),
        (lambda: Backbone(5), ArgumentTypeError, "name of a model or an nn.Module"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_unknown_name_is_told_what_is_near():
    kind = ConfigurationError if HAS_TIMM else MissingFileError
    with pytest.raises(kind, match=r"resnet81.*(Did you mean 'resnet|timm)"):
        Backbone("resnet81", weights=None)


def test_weights_that_cannot_be_downloaded_or_do_not_fit_say_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(MissingFileError, match=r"weights of resnet18 are not on this machine.*no network.*Give a file"):
        Backbone("resnet18")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ConfigurationError, match=r"other\.pt does not fit ResNet"):
        Backbone("resnet18", weights=str(tmp_path / "other.pt"))
    (tmp_path / "broken.pt").write_bytes(b"x")
    with pytest.raises(ConfigurationError, match=r"broken\.pt holds no state dict that can be read"):
        Backbone("resnet18", weights=str(tmp_path / "broken.pt"))
