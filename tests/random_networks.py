"""Networks at random, for hypothesis: layers that users have, with their options, in any order."""

import copy
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from lightning_meta import Examples, Task

WORDS = 5
SHAPES = {"vectors": [(3,)], "images": [(1, 4, 4), (2, 4, 3)], "sequences": [(2, 5), (1, 4)], "words": ["words"]}


class Residual(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, size):
        super().__init__()
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Several(nn.Module):
    """A list of parameters."""

    def __init__(self, size):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(size, size), torch.randn(size)])

    def forward(self, x):
        return x @ self.weights[0] + self.weights[1]


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self, assigns):
        super().__init__()
        self.assigns = assigns
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.assigns:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return x * (1 + 0.1 * self.calls)


class Centring(nn.Module):
    """Subtracts a mean that it keeps in a buffer."""

    def __init__(self, shape):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))

    def forward(self, x):
        self.mean.mul_(0.5).add_(0.5 * x.detach().mean(0))
        return x - self.mean


class Remembering(nn.Module):
    """Keeps what depends on its weight and on its input as attributes."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.cache, self.seen = nn.Parameter(torch.randn(size)), {}, None

    def forward(self, x):
        self.cache.setdefault("scale", self.weight.tanh())
        self.seen = x
        return x * self.cache["scale"]


class Clamping(nn.Module):
    """Writes into its weight."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.5, 0.5)
        return x * self.weight


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        found = self.layer(x)
        return found[0] if isinstance(found, tuple) else found


class Branches(nn.Module):
    """One branch for each of several inputs."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return torch.cat([self.a(x["a"]), self.b(x["b"])], 1)


class Context(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return (x + self.shift).tanh()


def one_of(draw, *values):
    """One of some values, of which the first is the simplest."""
    return draw(st.sampled_from(values))


def convolution(draw, shape):
    groups, bias = one_of(draw, *sorted({1, shape[0]})), one_of(draw, True, False)
    padding, mode = one_of(draw, 0, 1, "same"), one_of(draw, "zeros", "circular", "reflect", "replicate")
    return getattr(nn, f"Conv{len(shape) - 1}d")(
        shape[0], groups * one_of(draw, 2, 1), one_of(draw, 2, 1, 3), padding=padding, padding_mode=mode, bias=bias,
        stride=1 if padding == "same" else one_of(draw, 1, 2), dilation=one_of(draw, 1, 2), groups=groups,
    )  # fmt: skip


def running(draw, shape):
    """A batch or instance normalization."""
    dims = max(len(shape) - 1, 1)
    kind = "BatchNorm" if len(shape) == 1 else one_of(draw, "BatchNorm", "InstanceNorm")
    layer = getattr(nn, f"{kind}{dims}d")(
        shape[0], one_of(draw, 1e-5, 0.1), one_of(draw, 0.1, None), one_of(draw, True, False), one_of(draw, True, False)
    )
    if layer.track_running_stats:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def pooling(draw, shape):
    kind, dims = one_of(draw, "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool"), len(shape) - 1
    if kind.startswith("Adaptive"):
        return getattr(nn, f"{kind}{dims}d")(one_of(draw, 1, 2))
    sizes = {"stride": one_of(draw, None, 1), "padding": one_of(draw, 0, 1), "ceil_mode": one_of(draw, False, True)}
    return getattr(nn, f"{kind}{dims}d")(2, **sizes)


SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.Softplus, nn.Softsign, nn.PReLU, nn.Tanhshrink, nn.Hardshrink)
IN_PLACE = (
    nn.ReLU, nn.ELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.CELU, nn.Hardtanh, nn.SELU,
)  # fmt: skip

# By name: for how many dimensions of an example, and how to make it.
LAYERS: dict[str, Any] = {
    "linear": ((1, 2), lambda draw, shape: nn.Linear(shape[-1], one_of(draw, 3, 1), one_of(draw, True, False))),
    "activation": ((1, 2, 3), lambda draw, shape: one_of(draw, *SMOOTH)()),
    "activation in place": ((1, 2, 3), lambda draw, shape: one_of(draw, *IN_PLACE)(inplace=one_of(draw, True, False))),
    "convolution": ((2, 3), convolution),
    "pooling": ((2, 3), pooling),
    "batch or instance norm": ((1, 2, 3), running),
    "layer norm": ((1, 2, 3), lambda draw, shape: nn.LayerNorm(
        shape[one_of(draw, 0, -1) :], elementwise_affine=one_of(draw, True, False))),
    "group norm": ((1, 2, 3), lambda draw, shape: nn.GroupNorm(
        one_of(draw, *sorted({1, shape[0]})), shape[0], affine=one_of(draw, True, False))),
    "rms norm": ((1, 2, 3), lambda draw, shape: nn.RMSNorm(shape[-1])),
    "dropout": ((1, 2, 3), lambda draw, shape: nn.Dropout(0.0)),
    "recurrent": ((2,), lambda draw, shape: Recurrent(
        one_of(draw, nn.GRU, nn.LSTM)(shape[-1], 2, batch_first=True))),
    "cell": ((1,), lambda draw, shape: Recurrent(one_of(draw, nn.GRUCell, nn.LSTMCell)(shape[0], 2))),
    "tied": ((1, 2), lambda draw, shape: Tied(shape[-1])),
    "several": ((1, 2), lambda draw, shape: Several(shape[-1])),
    "counting": ((1, 2, 3), lambda draw, shape: Counting(one_of(draw, True, False))),
    "centring": ((1, 2, 3), lambda draw, shape: Centring(shape)),
    "remembering": ((1, 2, 3), lambda draw, shape: Remembering(shape[-1])),
    "clamping": ((1, 2, 3), lambda draw, shape: Clamping(shape[-1])),
}  # fmt: skip
WITHOUT_DERIVATIVE = (Counting, Centring, Clamping, nn.Embedding, parametrizations._SpectralNorm)


def layer(draw, shape):
    """A layer for examples of a shape, and the shape of what it makes of them; none if torch refuses them."""
    name = one_of(draw, *(n for n, (dims, _) in LAYERS.items() if len(shape) in dims))
    made = LAYERS[name][1](draw, shape)
    if isinstance(made, nn.Linear | nn.Conv1d | nn.Conv2d):
        norm = one_of(draw, None, "weight_norm", "spectral_norm")
        made = made if norm is None else getattr(parametrizations, norm)(made)
    made.double().requires_grad_(one_of(draw, True, True, True, False))
    try:
        after = tuple(copy.deepcopy(made)(torch.randn(2, *shape).double()).shape[1:])
    except (RuntimeError, ValueError, IndexError):
        return nn.Identity(), shape
    return Residual(made) if after == shape and one_of(draw, False, True) else made, after


def body(draw, shape, most=4):
    """Layers for vectors, sequences or images of a shape, or for words, and how many features they give."""
    made = nn.Sequential()
    if shape == "words":
        options = {"padding_idx": one_of(draw, None, 0, -1), "max_norm": one_of(draw, None, 1.0)}
        made.append(nn.Embedding(WORDS, 3, scale_grad_by_freq=one_of(draw, False, True), **options).double())
        shape = (2, 3)
    for _ in range(draw(st.integers(1, most))):
        one, shape = layer(draw, shape)
        made.append(one)
    return made.append(nn.Flatten()), torch.Size(shape).numel()


def network(draw, n_way, *, bias, context):
    """A network of a `body` and a `head`, away from special values, and the shapes of its inputs.

    Args:
        draw: That of a composite strategy.
        n_way: Outputs.
        bias: Whether the head has a bias in any case.
        context: Whether the body ends in a context.
    """
    torch.manual_seed(draw(st.integers(0, 20)))
    kind = one_of(draw, *SHAPES, "several")
    if kind == "several":
        shapes = [one_of(draw, *SHAPES[one_of(draw, *SHAPES)]) for _ in range(2)]
        (a, of_a), (b, of_b) = (body(draw, shape, 2) for shape in shapes)
        made, features = nn.Sequential(Branches(a, b)), of_a + of_b
    else:
        shapes = [one_of(draw, *SHAPES[kind])]
        made, features = body(draw, shapes[0])
    if context:
        made.add_module("context", Context(features))
    net = nn.Sequential()
    net.add_module("body", made)
    net.add_module("head", nn.Linear(features, n_way, bias=bias or one_of(draw, True, False)))
    for parameter in net.double().parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    if context:
        made.context.shift.data.zero_()
    return net, shapes


def tasks_for(draw, shapes, n_way, labels, has_mask):
    """A few small tasks for a network with inputs of these shapes.

    Args:
        draw: That of a composite strategy.
        shapes: One of a tensor, several of a dict of tensors.
        n_way: The number of classes.
        labels: Examples of "each class", "at random", of "one class", or "numbers" in the place of classes.
        has_mask: Whether tasks are of different sizes.
    """
    count = draw(st.integers(1, 3))

    def examples(size):
        size = size * n_way if labels == "each class" else size
        x = [
            torch.randint(WORDS, (count, size, 2)) if s == "words" else torch.randn(count, size, *s).double()
            for s in shapes
        ]
        targets = {
            "each class": torch.arange(size).expand(count, size) % n_way,
            "at random": torch.randint(n_way, (count, size)),
            "one class": torch.zeros(count, size, dtype=torch.long),
            "numbers": torch.randn(count, size, n_way).double(),
        }[labels]
        mask = torch.arange(size) < torch.randint(1, size + 1, (count, 1)) if has_mask else None
        return Examples(dict(zip("ab", x, strict=True)) if len(x) > 1 else x[0], targets, mask)

    return Task(examples(draw(st.integers(1, 2))), examples(draw(st.integers(1, 2))))
