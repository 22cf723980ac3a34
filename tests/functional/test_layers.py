"""A sweep of torch's layers with their options: all ways of running tasks have one meta-gradient, the right one.

The reference is finite differences of the meta-loss along a random direction, and the loop for the other ways. By
default those layers run that this package replaces or corrects; `--all-layers` runs all.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from lightning_meta import Examples, MAMLModule, Task
from lightning_meta.functional.kernels import mode
from tests.conftest import on_device, relative_error

EMBEDDED = 9
NO_VMAP = (nn.RNNBase, nn.LSTMCell)  # torch.vmap says so


class Of(nn.Module):
    """A function as a layer, around another one if there is one."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        return self.function(x) if self.layer is None else self.function(self.layer, x)


LAYERS = {}
QUICK = set()


def layer(name, make, shape, *, words=False, quick=False):
    LAYERS[name] = (make, shape, words)
    if quick:
        QUICK.add(name)


SHAPES = {1: (2, 8), 2: (2, 6, 6), 3: (2, 4, 4, 4)}
for d, shape in SHAPES.items():
    for options in (
        {},
        {"stride": 2},
        {"padding": 1},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"bias": False},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "replicate"},
    ):
        own = getattr(nn, f"Conv{d}d")
        layer(
            f"Conv{d}d {options}",
            lambda own=own, o=options: own(2, 4, 3, **o),
            shape,
        )
    layer(f"Conv{d}d to one channel", lambda d=d: getattr(nn, f"Conv{d}d")(2, 1, 3), shape, quick=True)
    for options in (
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"groups": 2},
        {"bias": False},
        {"dilation": 2},
    ):
        own = getattr(nn, f"ConvTranspose{d}d")
        layer(f"ConvTranspose{d}d {options}", lambda own=own, o=options: own(2, 4, 3, **o), shape)
    for name, cases in {
        "MaxPool": [{}, {"stride": 1}, {"padding": 1}, {"ceil_mode": True}],
        "AvgPool": [{}, {"padding": 1, "count_include_pad": False}, {"ceil_mode": True}],
        "LPPool": [{"norm_type": 2}],
    }.items():
        for options in cases:
            own = getattr(nn, f"{name}{d}d")
            layer(
                f"{name}{d}d {options}",
                lambda own=own, o=options: own(kernel_size=2, **o),
                shape,
            )
    for size in (2, 3):
        layer(f"AdaptiveAvgPool{d}d {size}", lambda d=d, s=size: getattr(nn, f"AdaptiveAvgPool{d}d")(s), shape)
        layer(f"AdaptiveMaxPool{d}d {size}", lambda d=d, s=size: getattr(nn, f"AdaptiveMaxPool{d}d")(s), shape)
    for name in ("BatchNorm", "InstanceNorm"):
        for options in (
            {"affine": False},
            {"affine": True},
            {"track_running_stats": False},
            {"track_running_stats": True},
            {"eps": 0.1},
        ):
            own = getattr(nn, f"{name}{d}d")
            layer(
                f"{name}{d}d {options}",
                lambda own=own, o=options: own(2, **o),
                shape,
                quick=name == "BatchNorm" and d == 1,
            )
        layer(
            f"{name}{d}d of one channel",
            lambda n=name, d=d: getattr(nn, f"{n}{d}d")(1, affine=True),
            (1, *shape[1:]),
            quick=True,
        )
    for name in ("ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad"):
        layer(f"{name}{d}d", lambda n=name, d=d: getattr(nn, f"{n}{d}d")(1), shape)
    layer(f"Dropout{d}d at 0", lambda d=d: getattr(nn, f"Dropout{d}d")(0.0), shape)
layer("BatchNorm1d of features", lambda: nn.BatchNorm1d(6), (6,), quick=True)
layer("BatchNorm1d of one feature", lambda: nn.Sequential(nn.Linear(6, 1), nn.BatchNorm1d(1)), (6,), quick=True)
layer("GroupNorm", lambda: nn.GroupNorm(2, 4), (4, 3, 3), quick=True)
layer("GroupNorm plain", lambda: nn.GroupNorm(2, 4, affine=False), (4, 3, 3))
for options in ({}, {"elementwise_affine": False}, {"bias": False}):
    layer(f"LayerNorm {options}", lambda o=options: nn.LayerNorm(6, **o), (4, 6), quick=not options)
layer("LayerNorm of two dimensions", lambda: nn.LayerNorm((4, 6)), (4, 6))
layer("RMSNorm", lambda: nn.RMSNorm(6), (4, 6))
layer("LocalResponseNorm", lambda: nn.LocalResponseNorm(2), (4, 3, 3))
layer("Linear", lambda: nn.Linear(6, 4), (6,), quick=True)
layer("Linear without bias", lambda: nn.Linear(6, 4, bias=False), (4, 6), quick=True)
layer("Linear to one", lambda: nn.Linear(6, 1), (6,), quick=True)
layer("Bilinear", lambda: Of(lambda m, x: m(x, x.flip(-1)), nn.Bilinear(6, 6, 3)), (4, 6))
for name in [
    "ELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardtanh",
    "Hardswish",
    "LeakyReLU",
    "LogSigmoid",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "CELU",
    "GELU",
    "Sigmoid",
    "SiLU",
    "Mish",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "GLU",
]:
    layer(name, lambda n=name: getattr(nn, n)(), (6,), quick=name in ("Hardsigmoid", "PReLU", "GELU"))
for name in [
    "ELU",
    "Hardsigmoid",
    "Hardtanh",
    "Hardswish",
    "LeakyReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "CELU",
    "SiLU",
    "Mish",
]:
    layer(f"{name} in place", lambda n=name: getattr(nn, n)(inplace=True), (6,), quick=name in ("ReLU", "Hardsigmoid"))
for name in ("Softmin", "Softmax", "LogSoftmax"):
    layer(name, lambda n=name: getattr(nn, n)(dim=-1), (6,))
layer("GELU tanh", lambda: nn.GELU("tanh"), (6,))
for options in ({}, {"padding_idx": 0}, {"padding_idx": -1}, {"sparse": True}):
    layer(f"Embedding {options}", lambda o=options: nn.Embedding(EMBEDDED, 5, **o), (4,), words=True, quick=True)
for options in (
    {"mode": "sum"},
    {"mode": "mean"},
    {"mode": "max"},
    {"mode": "sum", "padding_idx": 0},
    {"mode": "mean", "padding_idx": 2},
):
    layer(f"EmbeddingBag {options}", lambda o=options: nn.EmbeddingBag(EMBEDDED, 5, **o), (4,), words=True, quick=True)
for own in (nn.RNN, nn.LSTM, nn.GRU):
    for options in ({}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}):
        layer(
            f"{own.__name__} {options}",
            lambda own=own, o=options: Of(lambda m, x: m(x)[0], own(6, 3, batch_first=True, **o)),
            (4, 6),
        )
layer("LSTM with projections", lambda: Of(lambda m, x: m(x)[0], nn.LSTM(6, 4, proj_size=2, batch_first=True)), (4, 6))
layer("RNNCell", lambda: nn.RNNCell(6, 4), (6,))
layer("GRUCell", lambda: nn.GRUCell(6, 4), (6,))
layer("LSTMCell", lambda: Of(lambda m, x: m(x)[0], nn.LSTMCell(6, 4)), (6,))
for options in ({}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}):
    layer(
        f"MultiheadAttention {options}",
        lambda o=options: Of(lambda m, x: m(x, x, x)[0], nn.MultiheadAttention(6, 2, batch_first=True, **o)),
        (4, 6),
    )
for options in ({}, {"norm_first": True}, {"bias": False}):
    layer(
        f"TransformerEncoderLayer {options}",
        lambda o=options: nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True, **o),
        (4, 6),
    )
layer(
    "TransformerDecoderLayer",
    lambda: Of(lambda m, x: m(x, x.flip(1)), nn.TransformerDecoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True)),
    (4, 6),
)
for name in ("nearest", "bilinear", "bicubic"):
    layer(f"Upsample {name}", lambda n=name: nn.Upsample(scale_factor=2, mode=n), (2, 6, 6))
layer("PixelShuffle", lambda: nn.PixelShuffle(2), (4, 3, 3))
layer("Unfold and Fold", lambda: nn.Sequential(nn.Unfold(2), nn.Fold((6, 6), 2)), (2, 6, 6))
for name, function in {
    "cdist": lambda x: torch.cdist(x, x.flip(1) + 0.3),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(1)[0],
    "std": lambda x: x.std(1),
    "norm": lambda x: x.norm(dim=1),
    "prod": lambda x: x.prod(1),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
}.items():
    layer(name, lambda f=function: Of(f), (4, 6))
layer("weight_norm", lambda: parametrizations.weight_norm(nn.Linear(6, 4)), (6,), quick=True)
layer(
    "weight_norm over the second dimension",
    lambda: parametrizations.weight_norm(nn.Conv1d(2, 4, 3), dim=1),
    (2, 8),
    quick=True,
)
layer("weight_norm of all", lambda: parametrizations.weight_norm(nn.Linear(6, 4), dim=None), (6,), quick=True)
layer("orthogonal", lambda: parametrizations.orthogonal(nn.Linear(6, 4)), (6,))


class Around(nn.Module):
    """A layer with something to adapt before and after it."""

    def __init__(self, layer, shape, words):
        super().__init__()
        self.scale = None if words else nn.Parameter(1 + 0.3 * torch.randn(shape))
        self.layer = layer
        self.double()
        example = torch.zeros(2, *shape, dtype=torch.long) if words else torch.randn(2, *shape, dtype=torch.double)
        self.head = nn.Linear(self.features(example).shape[1], 2).double()

    def features(self, x):
        return self.layer(x if self.scale is None else x * self.scale).flatten(1)

    def forward(self, x):
        return self.head(self.features(x).tanh())


def prepared(name):
    """The layer in a network, away from special values, and tasks for it."""
    make, shape, words = LAYERS[name]
    torch.manual_seed(0)
    net = Around(make(), shape, words)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    targets = torch.tensor([0, 1, 0, 1]).expand(3, 4)
    parts = [torch.randint(EMBEDDED, (3, 4, *shape)) if words else torch.randn(3, 4, *shape).double() for _ in range(2)]
    return on_device(net), on_device(Task(*(Examples(part, targets) for part in parts)))


def meta_loss(net, tasks, way, first_order=False, **options):
    return MAMLModule(net, 0.3, 2, first_order=first_order, task_parallel=way, **options).meta_loss(tasks)


def gradient(net, tasks, way, first_order=False, **options):
    own = copy.deepcopy(net)
    meta_loss(own, tasks, way, first_order, **options).backward()
    return torch.cat([p.grad.flatten() for p in own.parameters()])


def against_finite_differences(name, way="loop"):
    """The relative error of the second-order meta-gradient along a direction, which padding has no part in."""
    net, tasks = prepared(name)
    direction = [torch.randn_like(p) for p in net.parameters()]
    padding = getattr(net.layer, "padding_idx", None)
    if padding is not None:
        direction[0][padding] = 0

    def value(step):
        moved = copy.deepcopy(net)
        for parameter, along in zip(moved.parameters(), direction, strict=True):
            parameter.data += step * along
        return meta_loss(moved, tasks, way).item()

    eps = 2e-5
    expected = (8 * (value(eps) - value(-eps)) - (value(2 * eps) - value(-2 * eps))) / (12 * eps)
    found = (gradient(net, tasks, way) * torch.cat([along.flatten() for along in direction])).sum().item()
    return abs(found - expected) / max(abs(expected), 1e-2)


RECORDED = {"BatchNorm1d of one feature", "Embedding {'padding_idx': 0}", "weight_norm"}
"""Of the layers that are compiled, those that are by default."""


def selected(request, name, quick=QUICK):
    if name not in quick and not request.config.getoption("--all-layers"):
        pytest.skip("one of many layers: --all-layers runs them")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_layer(name, request):
    selected(request, name)
    assert against_finite_differences(name) < 1e-8
    net, tasks = prepared(name)
    if any(isinstance(module, NO_VMAP) for module in net.modules()):
        return
    for first_order in (False, True):
        expected = gradient(net, tasks, "loop", first_order)
        for way in ("vmap", 2):
            assert relative_error(gradient(net, tasks, way, first_order), expected) < 1e-8, (way, first_order)


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_layer_as_it_is_recorded_for_compiling(name, way, request, monkeypatch):
    """By a backend that changes nothing: what is recorded is this package's part of compiling."""
    selected(request, name, RECORDED)
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda program, **kwargs: compile(program, backend="eager"))
    net, tasks = prepared(name)
    if way == "vmap" and any(isinstance(module, NO_VMAP) for module in net.modules()):
        return
    for first_order in (False, True):
        expected = gradient(net, tasks, "loop", first_order)
        assert relative_error(gradient(net, tasks, way, first_order, compile=True), expected) < 1e-8, first_order


def test_the_sweep_finds_a_wrong_second_derivative(monkeypatch, request):
    if request.config.getoption("device") != "cpu":
        pytest.skip("torch's weight normalization is wrong on a CPU")
    monkeypatch.setattr(mode, "CORRECTIONS", {})
    assert against_finite_differences("weight_norm") > 1e-4


def test_the_sweep_finds_an_argument_that_vmap_drops(monkeypatch):
    monkeypatch.setattr(mode, "CORRECTIONS", {})
    net, tasks = prepared("Embedding {'padding_idx': 0}")
    assert relative_error(gradient(net, tasks, "vmap"), gradient(net, tasks, "loop")) > 1e-4


# What the engine relies on in torch, of which a wrong second derivative is known or would not be noticed.
RELIED_ON = {
    "conv2d": lambda x: F.conv2d(x.view(1, 2, 3, 2), x[:8].view(2, 2, 2, 1)),
    "linear": lambda x: F.linear(x.view(3, 4), x.view(3, 4)),
    "bmm": lambda x: torch.bmm(x.view(2, 3, 2), x.view(2, 2, 3)),
    "cross_entropy": lambda x: F.cross_entropy(x.view(4, 3), torch.arange(4) % 3),
    "layer_norm": lambda x: F.layer_norm(x.view(3, 4), (4,), x[:4], x[4:8]),
    "group_norm": lambda x: F.group_norm(x.view(1, 4, 3), 2, x[:4], x[4:8]),
    "instance_norm": lambda x: F.instance_norm(x.view(1, 2, 6), weight=x[:2], bias=x[2:4]),
    "softmax": lambda x: x.view(3, 4).softmax(1),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.view(1, 1, 3, 4)] * 3),
    "cholesky": lambda x: torch.linalg.cholesky(x[:9].view(3, 3) @ x[:9].view(3, 3).t() + torch.eye(3)),
    "vector_norm": lambda x: torch.linalg.vector_norm(x.view(3, 4), dim=1),
}


@pytest.mark.parametrize("name", RELIED_ON)
@pytest.mark.filterwarnings("ignore")
def test_torch_has_the_second_derivatives_that_are_relied_on(name):
    x = torch.randn(12, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert torch.autograd.gradcheck(RELIED_ON[name], x)
        assert torch.autograd.gradgradcheck(RELIED_ON[name], x)
