"""Layers of many tasks against torch's own, one task at a time: values, first and second derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import MAMLModule
from lightning_meta.functional.kernels import mode, task_kernels
from lightning_meta.functional.kernels.convolution import Convolution
from lightning_meta.functional.kernels.layout import dense
from lightning_meta.functional.kernels.normalization import BatchNormalization
from lightning_meta.functional.kernels.pooling import halved
from lightning_meta.functional.task_map import TaskMap
from tests.conftest import image_tasks, meta_gradient_by_hand, relative_error
from tests.functional.test_meta_gradient import LR, meta_gradient, unrolled
from tests.networks import network

TASKS = 3
LAYERS = {
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1), (5, 4, 9), (6, 4, 3), (6,)),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), (5, 4, 7, 7), (6, 4, 3, 3), (6,)),
    "conv2d, one channel": (lambda x, w, b: F.conv2d(x, w, b), (5, 1, 7, 7), (6, 1, 3, 3), (6,)),
    "conv2d, groups": (lambda x, w, b: F.conv2d(x, w, b, 1, 2, 2, 2), (5, 4, 7, 7), (6, 2, 3, 3), (6,)),
    "conv2d, uneven": (lambda x, w, b: F.conv2d(x, w, None, (2, 1), (0, 1)), (5, 4, 7, 6), (6, 4, 3, 2), (6,)),
    "conv2d, small": (lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), (5, 4, 4, 4), (6, 4, 3, 3), (6,)),
    "conv2d, from large to small": (lambda x, w, b: F.conv2d(x, w, b, 3), (5, 4, 8, 9), (6, 4, 3, 3), (6,)),
    "conv3d": (lambda x, w, b: F.conv3d(x, w, b, padding=1), (3, 2, 4, 4, 4), (4, 2, 3, 3, 3), (4,)),
    "linear": (F.linear, (5, 7), (6, 7), (6,)),
    "linear without bias": (lambda x, w, b: F.linear(x, w), (5, 7), (6, 7), (6,)),
    "linear on sequences": (F.linear, (5, 2, 7), (6, 7), (6,)),
    "large linear": (F.linear, (5, 256), (128, 256), (128,)),
    "large linear on sequences": (F.linear, (5, 2, 256), (128, 256), (128,)),
    "batch norm of features": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (8, 4), (4,), (4,)),
    "batch norm of sequences": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (8, 4, 5), (4,), (4,)),
    "batch norm of images": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (5, 4, 3, 3), (4,), (4,)),
    "batch norm of larger images": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (5, 4, 8, 7), (4,), (4,)),
    "average pooling": (lambda x, w, b: F.adaptive_avg_pool2d(x * w, 1) + b, (5, 4, 7, 8), (4, 1, 1), (4, 1, 1)),
    "max pooling of large images": (lambda x, w, b: F.max_pool2d(x * w, 2) + b, (5, 4, 8, 8), (4, 1, 1), (4, 1, 1)),
    "max pooling": (lambda x, w, b: F.max_pool2d(x * w, 2) + b, (5, 4, 6, 6), (4, 1, 1), (4, 1, 1)),
    "overlapping pooling": (
        lambda x, w, b: F.max_pool2d(x * w, 3, 2, 1, ceil_mode=True) + b, (5, 4, 7, 7), (4, 1, 1), (4, 1, 1)
    ),
}  # fmt: skip
SHARED = ("nothing", "weights", "bias", "all", "inputs", "views")


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def derivatives(y, leaves):
    """The gradient of a function of `y`, and that of a function of it, which has every second derivative in it."""
    first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True, materialize_grads=True)
    scalar = sum((g * torch.linspace(-1, 1, g.numel(), dtype=g.dtype).view(g.shape)).sum() for g in first)
    second = torch.autograd.grad(scalar, leaves, materialize_grads=True)
    return [*first, *second]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shared", SHARED)
def test_kernels_have_the_derivatives_of_torchs_layers(layer, shared):
    function, *shapes = LAYERS[layer]
    names = ("inputs", "weights", "bias")
    alone = [(shared in ("all", name) and name != "inputs") or shared == name for name in names]
    leaves = [
        random(*(() if is_shared or (shared == "views" and i) else (TASKS,)), *shape, seed=i).requires_grad_()
        for i, (shape, is_shared) in enumerate(zip(shapes, alone, strict=True))
    ]

    def arguments():
        if shared != "views":
            return leaves
        return [leaves[0], *(leaf.expand(TASKS, *leaf.shape) for leaf in leaves[1:])]

    def of_one(*tensors):
        with task_kernels(vectorized=True):
            return function(*tensors)

    found = torch.vmap(of_one, in_dims=tuple(None if one else 0 for one in alone))(*arguments())
    expected = torch.stack(
        [
            function(*(t if one else t[i] for t, one in zip(arguments(), alone, strict=True)))
            for i in range(TASKS)
        ]
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # The same with gradients for each task's own copy, which is what an inner step takes.
    for a, b in zip(derivatives(found, leaves), derivatives(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", LAYERS)
def test_kernels_of_a_single_task_too(layer, monkeypatch):
    monkeypatch.setattr(mode, "SMALLEST_OF_ONE_TASK", 0)
    function, *shapes = LAYERS[layer]
    leaves = [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    expected = function(*leaves)
    with task_kernels(vectorized=False):
        found = function(*leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(derivatives(found, leaves), derivatives(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("images", "channels", "stride", "is_a_kernel"),
    [(75, 1, 1, True), (75, 1, 4, False), (5, 1, 1, False), (200, 3, 1, True)],
)
def test_a_convolution_of_one_task_is_as_large_as_what_it_reads_or_makes(images, channels, stride, is_a_kernel):
    """Kernels have the channels last; where the first layer had not, all after it would copy."""
    x, weight = torch.zeros(images, channels, 28, 28), torch.zeros(16, channels, 3, 3)
    with task_kernels(vectorized=False):
        positional, by_keyword = (
            F.conv2d(x, weight, None, stride, 1),
            F.conv2d(x, weight=weight, stride=stride, padding=1),
        )
    for found in (positional, by_keyword):
        assert found.is_contiguous(memory_format=torch.channels_last) == is_a_kernel


def test_normalization_against_finite_differences():
    x, weight, bias = random(3, 2, 2, 3, seed=0), random(2, 2, seed=1), random(2, 2, seed=2)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def normalize(*args):
        return BatchNormalization.apply(*args, 1e-5)[0]

    assert torch.autograd.gradcheck(normalize, inputs)
    assert torch.autograd.gradgradcheck(normalize, inputs)


def test_zero_scales_are_no_trouble():
    """The scale is divided by nowhere."""
    x, weight, bias = random(3, 2, 2, 3, seed=0), torch.zeros(2, 2, dtype=torch.float64), random(2, 2, seed=2)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradgradcheck(lambda *args: BatchNormalization.apply(*args, 1e-5)[0], inputs)


def test_running_statistics_are_written_as_torch_writes_them():
    layer = nn.BatchNorm2d(4).double()
    x = random(TASKS, 5, 4, 3, 3, seed=0)
    stacked = {name: buffer.expand(TASKS, *buffer.shape).clone() for name, buffer in layer.named_buffers()}

    def of_one(buffers, x):
        with task_kernels(vectorized=True):
            return torch.func.functional_call(layer, buffers, (x,))

    torch.vmap(of_one)(stacked, x)
    for i in range(TASKS):
        layer.reset_running_stats()
        layer(x[i])
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(stacked[name][i], buffer)


@pytest.mark.parametrize(
    ("call", "inputs"),
    [
        (lambda x: F.conv2d(x, torch.ones(2, 3, 3, 3), padding="same"), torch.randn(2, 3, 5, 5)),
        (lambda x: F.conv2d(x, torch.ones(2, 3, 3, 3)), torch.randn(3, 5, 5)),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], torch.randn(2, 3, 4, 4)),
        (lambda x: F.max_pool2d(x, 2, ceil_mode=True), torch.randn(2, 3, 5, 4)),
        (lambda x: F.linear(x, torch.ones(2, 3)), torch.randn(3)),
        (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)), torch.randn(2, 3)),
        (lambda x: F.batch_norm(x, None, None, training=True), torch.randn(4, 3)),
        (lambda x: F.linear(x, torch.ones(2, 3, dtype=torch.bfloat16)), torch.ones(4, 3, dtype=torch.bfloat16)),
    ],
)
def test_what_kernels_are_not_made_for_is_left_to_torch(call, inputs):
    with task_kernels(vectorized=True):
        found = call(inputs)
    assert torch.equal(found, call(inputs))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 7, 10), (4, 2, 3), (1, 1, 84, 83)])
def test_pooling_in_halves_is_that_of_torch_with_ties_too(shape):
    """Among equal values the first one counts, row by row; what is no number is the largest."""
    x = random(*shape, seed=0).mul(2).round()  # a handful of values, so that most windows have ties
    y, places = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])
    found, found_places = halved(x, with_places=True)
    assert torch.equal(found, y)
    assert torch.equal(found_places, places)
    x[..., 1, 1] = math.nan
    y = F.max_pool2d(x, 2)
    assert y.isnan().any()
    assert torch.equal(halved(x, with_places=False)[0].nan_to_num(99), y.nan_to_num(99))


def as_autocast_asks(x, w, b):
    """A convolution in bfloat16, written by torch's own layers."""
    return F.conv2d(x.bfloat16(), w.bfloat16(), b.bfloat16(), stride=2, padding=1)


@pytest.mark.parametrize("shared", ["nothing", "weights"])
@pytest.mark.parametrize("size", [4, 8])
def test_autocast_rounds_convolutions(shared, size):
    """Values and the first and second derivatives of torch's bfloat16 convolution, of tensors in float32."""
    shapes = (5, 16, size, size), (16, 16, 3, 3), (16,)
    alone = (False, shared == "weights", False)
    leaves = [
        random(*(() if one else (TASKS,)), *shape, seed=i).float().requires_grad_()
        for i, (shape, one) in enumerate(zip(shapes, alone, strict=True))
    ]

    def of_one(*tensors):
        with task_kernels(vectorized=True):
            return F.conv2d(*tensors, stride=2, padding=1)

    in_dims = tuple(None if one else 0 for one in alone)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.vmap(of_one, in_dims=in_dims)(*leaves)
        of_all = derivatives(found.float(), leaves)
    each = [[t if one else t[i] for t, one in zip(leaves, alone, strict=True)] for i in range(TASKS)]
    expected = torch.stack([as_autocast_asks(*tensors) for tensors in each])
    exact = torch.vmap(of_one, in_dims=in_dims)(*leaves)
    assert (found.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)  # sums in another order, rounded
    assert relative_error(found.float(), exact) > 1e-4
    for a, b in zip(of_all, derivatives(expected.float(), leaves), strict=True):
        assert a.dtype == torch.float32
        # A bias that tasks do not share is added to what is rounded, and the sum is rounded again.
        assert relative_error(a, b) < (0.05 if shared == "weights" else 0.01)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("kernel", "layer"),
    {
        "usual": ((3, 3), Convolution((2, 2), (1, 1), (1, 1), 1)),
        "uneven": ((2, 3), Convolution((3, 2), (2, 0), (1, 2), 1)),
        "shortcut": ((1, 1), Convolution((1, 1), (0, 0), (1, 1), 1)),
    }.values(),
    ids=["usual", "uneven", "shortcut"],
)
def test_gradients_of_rounded_weights_by_patches(kernel, layer, shared, monkeypatch):
    """Where convolutions make steps the gradient is one product of matrices; it is torch's of the rounded tensors."""
    x, weight = random(5, TASKS, 16, 9, 8, seed=0).bfloat16(), random(TASKS, 4, 16, *kernel, seed=1)
    arguments = layer.stride, layer.padding, layer.dilation
    weights = [w.requires_grad_() for w in weight]
    found = [F.conv2d(x[:, i].double(), w, None, *arguments) for i, w in enumerate(weights)]
    grad = random(5, TASKS, *found[0].shape[1:], seed=2).bfloat16()
    expected = torch.stack(torch.autograd.grad(found, weights, [*grad.double().unbind(1)]))
    if shared:
        expected = expected.sum(0, keepdim=True)
    monkeypatch.setattr(Convolution, "_arguments", None)  # which the convolution of torch would need
    by_patches = layer.of_weight(dense(grad), dense(x), expected.shape)
    assert relative_error(by_patches.double(), expected) < 2**-8


def test_a_single_task_is_rounded_like_many():
    """Below the size from which kernels are worth it, too, so that a loop and torch.vmap round alike."""
    x, w, b = (random(*shape, seed=i).float() for i, shape in enumerate([(5, 3, 6, 6), (4, 3, 3, 3), (4,)]))
    with torch.autocast("cpu", torch.bfloat16), task_kernels(vectorized=False):
        found = F.conv2d(x, w, b, stride=2, padding=1)
    torch.testing.assert_close(found, as_autocast_asks(x, w, b), rtol=0, atol=0)


AFTER_CONVOLUTIONS = {
    "normalization, ReLU and pooling": (
        lambda y, w: F.max_pool2d(F.relu(F.batch_norm(y, None, None, w[0], w[1], True)), 2), torch.bfloat16
    ),
    "pooling in the mean": (lambda y, w: F.adaptive_avg_pool2d(y, 1), torch.bfloat16),
    "other normalization": (lambda y, w: F.group_norm(y, 2, w[0], w[1]), torch.float32),
    "other products": (lambda y, w: torch.einsum("nchw,kc->nkhw", y, w) + (y.mean((2, 3)) @ w.t())[..., None, None],
                       torch.float32),
    "parametric ReLU": (lambda y, w: F.prelu(y, w[0]), torch.float32),
    "shortcuts": (lambda y, w: torch.relu(y) + y, torch.float32),
    "lists": (lambda y, w: torch.cat([y, w.view(1, 4, 4, 1).expand(5, 4, 4, 4)], 1), torch.float32),
    "writing": (lambda y, w: y.clone().mul_(w[0].view(-1, 1, 1)).add_(1), torch.float32),
    "writing into the output": (lambda y, w: y.mul_(2), torch.bfloat16),
    "views as": (lambda y, w: F.relu(y.view_as(y)), torch.bfloat16),
    "derivatives": (lambda y, w: torch.autograd.grad((F.relu(y) ** 2).sum(), y, create_graph=True)[0], torch.bfloat16),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "vectorized"),
    [(case, vectorized) for case in AFTER_CONVOLUTIONS for vectorized in (True, False)
     if not (vectorized and case == "derivatives")],  # which torch.vmap has not
)  # fmt: skip
def test_what_follows_a_rounded_convolution(case, vectorized):
    """It stays rounded where the next convolution would round it, and everything else has it in float32."""
    after, dtype = AFTER_CONVOLUTIONS[case]
    leaves = [
        random(TASKS, *shape, seed=i).float().requires_grad_()
        for i, shape in enumerate([(5, 3, 8, 8), (4, 3, 3, 3), (4,), (4, 4)])
    ]

    def of_one(x, w, b, other):
        with task_kernels(vectorized=vectorized) as kernels:
            y = after(F.conv2d(x, w, b, stride=2, padding=1), other)
        assert kernels.rounded == torch.is_autocast_enabled("cpu")
        return y

    def of_each():
        return torch.stack([of_one(*tensors) for tensors in zip(*leaves, strict=True)])

    with torch.autocast("cpu", torch.bfloat16):
        found = torch.vmap(of_one)(*leaves) if vectorized else of_each()
        of_all = [found.float(), *derivatives(found.float(), leaves)]
    exact = of_each()
    assert exact.dtype == torch.float32
    assert found.dtype == dtype or (case == "parametric ReLU" and not vectorized)  # which torch's own autocast rounds
    for a, b in zip(of_all, [exact, *derivatives(exact, leaves)], strict=True):
        assert (a - b).norm() < 0.1 * b.norm() + 0.01


def shift(y):
    y.data = y.data + 1


WRITES = {
    "part": lambda y: y[:, :8].mul_(3),
    "part of an activation": lambda y: F.relu(y[:, ::2], inplace=True),
    "copies": lambda y: y[:, :8].copy_(y[:, 8:]),
    "elements": lambda y: y.__setitem__((slice(None), torch.arange(8)), y[:, 8:].tanh()),
    "one after another": lambda y: [image.mul_(3) for image in (y[0], y[1])],
    "another order": lambda y: y.transpose(1, 2).mul_(3),
    "detached": lambda y: y.detach().mul_(3),
    "another shape": lambda y: y.view(len(y), -1).mul_(3),
    "flat": lambda y: y.flatten(1).mul_(3),
    "all flat": lambda y: y.reshape(-1).mul_(3),
    "data": shift,
}


class Writes(nn.Module):
    """A convolution into a part of whose output something is written."""

    def __init__(self, write, size=6):
        super().__init__()
        self.write, self.size = write, size
        self.body, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x):
        y = self.body(F.interpolate(x, self.size))
        self.write(y)
        return self.head(torch.cat([y, y.new_zeros(y.shape).index_add_(1, torch.arange(16), y)], 2).mean((2, 3)))


@pytest.mark.parametrize("task_parallel", ["vmap", "loop"])
@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_into_a_view_of_a_rounded_output_is_there(write, task_parallel):
    """Though functions have such an output in float32, which is a copy."""
    if (write, task_parallel) == ("data", "vmap"):
        pytest.skip("torch.vmap refuses it")
    torch.manual_seed(0)
    network, tasks = Writes(WRITES[write]), image_tasks(dtype=torch.float32)
    expected = meta_gradient_by_hand(network, tasks, LR)
    module = MAMLModule(network, LR, 2, task_parallel=task_parallel)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.meta_loss(tasks)
    assert relative_error(torch.autograd.grad(loss, list(network.parameters())), expected) < 0.02


@pytest.mark.parametrize("task_parallel", ["vmap", "loop"])
@pytest.mark.parametrize("write", ["another shape", "flat", "all flat"])
def test_what_is_written_into_a_view_of_another_shape_is_there(write, task_parallel):
    """Of a layer that is large enough for a kernel, of which one task's channels are last in memory."""
    torch.manual_seed(0)
    network, tasks = Writes(WRITES[write], size=48).double(), image_tasks(tasks=2)
    expected = meta_gradient_by_hand(network, tasks, LR)
    loss = MAMLModule(network, LR, 2, task_parallel=task_parallel).meta_loss(tasks)
    assert relative_error(torch.autograd.grad(loss, list(network.parameters())), expected) < 1e-10


class Product(nn.Module):
    """A product that is no layer's, copied in another order and written into."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 12) / 8)

    def forward(self, x):
        y = (x.flatten(1) @ self.weight).view(len(x), 4, 3).transpose(1, 2).reshape(len(x), -1)
        return y.mul_(2)[:, :3]


def test_what_torch_rounds_may_be_copied_and_written_into():
    """Autocast rounds it for one task; the network runs again at most once for each kind of write."""
    torch.manual_seed(0)
    network, tasks = Product(), image_tasks(dtype=torch.float32)
    expected = meta_gradient_by_hand(network, tasks, LR)
    with torch.autocast("cpu", torch.bfloat16):
        loss = MAMLModule(network, LR, 2, task_parallel="loop").meta_loss(tasks)
    assert relative_error(torch.autograd.grad(loss, list(network.parameters())), expected) < 0.05


@pytest.mark.parametrize(
    ("layer", "size", "kernel"),
    [
        (Convolution((2, 2), (1, 1), (1, 1), 1), (1, 1), (3, 3)),
        (Convolution((2, 2), (2, 0), (1, 1), 1), (7, 5), (3, 5)),
        (Convolution((1, 3), (1, 0), (1, 1), 4), (5, 2), (2, 2)),
        (Convolution((1,), (2,), (1,), 1), (6,), (1,)),
        (Convolution((1, 1), (1, 1), (2, 2), 1), (1, 1), (2, 2)),
        (Convolution((1, 1, 1), (1, 1, 1), (1, 1, 1), 1), (4, 4, 4), (3, 3, 3)),
    ],
)
def test_where_convolutions_of_torch_are_wrong_in_bfloat16(layer, size, kernel):
    """They are in float32 there: torch's have results that depend on what was in memory before."""
    x, w = random(2, TASKS, 4 * layer.groups, *size, seed=0).float(), random(8, 4, *kernel, seed=1).float()
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    leaves = [x.requires_grad_(), w.requires_grad_()]

    def of_one(x):
        with task_kernels(vectorized=True):
            return conv(x, w, None, *layer)

    exact = torch.vmap(of_one, in_dims=1)(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.vmap(of_one, in_dims=1)(x)
        of_all = derivatives(found, leaves)
    torch.testing.assert_close(found, exact)
    for a, b in zip(of_all, derivatives(exact, leaves), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(6, 7), (128, 200)])
def test_linear_layers_are_rounded_if_they_are_large(shape):
    """Small ones are exact, and so are their gradients, which are taken while autocast is on."""
    leaves = [
        random(TASKS, *size, seed=i).float().requires_grad_()
        for i, size in enumerate([(5, shape[1]), shape, shape[:1]])
    ]

    def of_one(*tensors):
        with task_kernels(vectorized=True):
            return F.linear(*tensors)

    with torch.autocast("cpu", torch.bfloat16):
        found = torch.vmap(of_one)(*leaves)
        of_all = [found, *derivatives(found, leaves)]
    expected = torch.stack([F.linear(*(t[i] for t in leaves)) for i in range(TASKS)])
    is_small = shape[0] < 100
    for a, b in zip(of_all, [expected, *derivatives(expected, leaves)], strict=True):
        assert a.dtype == torch.float32
        error = relative_error(a, b)
        assert error < 1e-5 if is_small else 1e-4 < error < 0.1


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_may_have_a_name(padding):
    """It is rounded like any other, by torch.vmap and in a loop, and is torch's in float64."""
    x, w, b = (random(TASKS, *shape, seed=i) for i, shape in enumerate([(5, 3, 8, 8), (4, 3, 3, 3), (4,)]))

    def of_one(vectorized):
        def run(x, w, b):
            with task_kernels(vectorized=vectorized):
                return F.conv2d(x, w, b, padding=padding)

        return run

    expected = [F.conv2d(x[i], w[i], b[i], padding=padding) for i in range(TASKS)]
    torch.testing.assert_close(torch.vmap(of_one(True))(x, w, b), torch.stack(expected), rtol=1e-12, atol=1e-12)
    x, w, b = x.float(), w.float(), b.float()
    with torch.autocast("cpu", torch.bfloat16):
        together, alone = torch.vmap(of_one(True))(x, w, b), [of_one(False)(x[i], w[i], b[i]) for i in range(TASKS)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=0)
    assert relative_error(together, torch.stack(expected).float()) > 1e-4


@pytest.mark.parametrize("task_parallel", ["vmap", "loop"])
def test_predictions_are_in_float32(task_parallel):
    """Those of a network whose last layer is rounded, too."""
    seen = set()

    def loss(predictions, targets):
        seen.add(predictions.dtype)
        return F.cross_entropy(predictions.mean((2, 3)), targets)

    module = MAMLModule(nn.Conv2d(1, 3, 3), LR, loss=loss, task_parallel=task_parallel)
    with torch.autocast("cpu", torch.bfloat16):
        module.meta_loss(image_tasks(dtype=torch.float32)).backward()
    assert seen == {torch.float32}


def test_16_bits_are_all_that_autocast_makes_of_the_weights_type():
    w = torch.ones(4, 3, 3, 3)
    for wrong in (torch.long, torch.float64):
        with torch.autocast("cpu", torch.bfloat16), task_kernels(vectorized=False), pytest.raises(RuntimeError):
            F.conv2d(torch.ones(5, 3, 8, 8, dtype=wrong), w)


def test_torchs_own_errors_stay():
    with task_kernels(vectorized=True):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            F.batch_norm(torch.randn(1, 3), None, None, torch.ones(3), torch.ones(3), True)
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            F.linear(torch.randn(2, 4), torch.randn(5, 3))


def test_without_the_private_functions_of_torch_results_are_the_same(monkeypatch):
    net, tasks = network("batch"), image_tasks()
    _, expected = meta_gradient(MAMLModule(net, 0.1, task_parallel="vmap"), tasks)
    expected = [g.clone() for g in expected]
    monkeypatch.setattr(mode, "AVAILABLE", False)
    _, found = meta_gradient(MAMLModule(net, 0.1, task_parallel="vmap"), tasks)
    assert relative_error(found, expected) < 1e-12


def test_networks_with_transforms_of_their_own():
    """A network that uses torch.vmap itself."""

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.linear = nn.Flatten(), nn.Linear(64, 3)

        def forward(self, x):
            return torch.vmap(self.linear)(self.flat(x))

    net, tasks = Nested().double(), image_tasks(n_query=2)
    _, expected = unrolled(net, tasks, 2, False)
    _, found = meta_gradient(MAMLModule(net, LR, 2, task_parallel="vmap"), tasks)
    assert relative_error(found, expected) < 1e-12


def test_memory_bounds_how_many_tasks_run_together():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    tasks = image_tasks(tasks=9, size=8)
    positions = (2 + 3) * 3 * 64
    for fitting, expected in ((9, 9), (4, 4), (1, 0), (0.5, 0)):
        task_map = TaskMap(net, ("0.weight",), "auto")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lightning_meta.functional.task_map.POSITIONS_TOGETHER", math.floor(fitting * positions))
            assert task_map.together(tasks) == expected


@pytest.mark.parametrize("way", ["loop", "vmap", 2])
@pytest.mark.parametrize("hidden", [16, 200])
def test_layers_may_be_followed_by_one_that_writes_in_place(way, hidden, monkeypatch):
    monkeypatch.setattr(mode, "SMALLEST_OF_ONE_TASK", 0)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4),
        nn.LeakyReLU(inplace=True), nn.MaxPool2d(2), nn.ELU(inplace=True), nn.Flatten(), nn.Linear(64, hidden),
        nn.ReLU(inplace=True), nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, 3),
    ).double()  # fmt: skip
    tasks = image_tasks(n_query=2)
    _, expected = unrolled(net, tasks, 2, False)
    _, found = meta_gradient(MAMLModule(net, LR, 2, task_parallel=way), tasks)
    assert relative_error(found, expected) < 1e-12
