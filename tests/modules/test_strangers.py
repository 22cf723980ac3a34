"""Networks, losses and habits of users that once gave a silently wrong gradient or metric, or a bare error."""

import copy
import pickle

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_meta import MLP, EpisodicDataModule, Examples, IMAMLModule, MAMLModule, ReptileModule, Task, stack_tasks
from lightning_meta.errors import ArgumentTypeError, CheckpointError, ConfigurationError, NetworkError
from lightning_meta.task import map_tensors
from tests.conftest import pairs, relative_error, vector_tasks
from tests.modules.test_maml import sinusoid_module, sinusoids, trainer

WAYS = ("loop", "vmap", 2)


def word_tasks(words=11, tasks=3, examples=4, length=7):
    draw = torch.Generator().manual_seed(0)
    targets = torch.tensor([0, 1]).repeat(examples // 2).expand(tasks, examples)
    parts = [torch.randint(words, (tasks, examples, length), generator=draw) for _ in range(2)]
    return Task(*(Examples(part, targets) for part in parts))


def gradient(network, tasks, way="loop", **options):
    """The meta-gradient, of a copy of the network."""
    own = copy.deepcopy(network)
    MAMLModule(own, **{"inner_lr": 0.3, "inner_steps": 2, "task_parallel": way} | options).meta_loss(tasks).backward()
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in own.parameters()])


def scaled(network):
    """With parameters away from special values, in float64."""
    torch.manual_seed(0)
    for parameter in network.double().parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("way", ["vmap", 2])
@pytest.mark.parametrize("adapt_only", [None, "3"])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalization_of_one_channel(way, adapt_only, affine):
    """Its scale, shared by the tasks, would be read past its end."""
    net = scaled(nn.Sequential(nn.Linear(6, 1), nn.BatchNorm1d(1, affine=affine), nn.Tanh(), nn.Linear(1, 3)))
    tasks = vector_tasks()
    expected = gradient(net, tasks, adapt_only=adapt_only)
    for _ in range(2):
        assert relative_error(gradient(net, tasks, way, adapt_only=adapt_only), expected) < 1e-10


class Words(nn.Module):
    """Classifies the mean embedding."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        embedded = self.embedding(x)
        return self.head((embedded if embedded.dim() == 2 else embedded.mean(1)).tanh())


class PlainEmbedding(nn.Module):
    """An embedding as a product with one-hot words."""

    def __init__(self, weight, padding_idx=None, by_freq=False, bag=None):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.padding_idx, self.by_freq, self.bag = padding_idx, by_freq, bag

    def forward(self, x):
        weight = self.weight
        if self.padding_idx is not None:
            padding = torch.arange(len(weight)) == self.padding_idx % len(weight)
            weight = torch.where(padding.unsqueeze(1), weight.detach(), weight)
        if self.by_freq:
            counts = F.one_hot(x, len(weight)).flatten(0, -2).sum(0).clamp(min=1).unsqueeze(1)
            weight = weight.detach() + (weight - weight.detach()) / counts
        each = F.one_hot(x, len(weight)).to(weight.dtype) @ weight
        if self.bag is None:
            return each
        counts = (x != self.padding_idx).unsqueeze(-1) if self.padding_idx is not None else torch.ones_like(each) > 0
        if self.bag == "max":
            return each.masked_fill(~counts, -torch.inf).amax(1)
        total = torch.where(counts, each, 0).sum(1)
        return total if self.bag == "sum" else total / counts.sum(1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, {}),
        ({"padding_idx": 0}, {"padding_idx": 0}),
        ({"padding_idx": -1}, {"padding_idx": -1}),
        ({"scale_grad_by_freq": True}, {"by_freq": True}),
        ({"sparse": True}, {}),
    ],
)
def test_embeddings(way, first_order, options, plain):
    net = scaled(Words(nn.Embedding(11, 5, **options)))
    reference = Words(PlainEmbedding(net.embedding.weight, **plain)).double()
    reference.head.load_state_dict(net.head.state_dict())
    found, expected = (gradient(n, word_tasks(), way, first_order=first_order) for n in (net, reference))
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding_bags_have_a_second_derivative(way, mode, padding_idx):
    net = scaled(Words(nn.EmbeddingBag(11, 5, mode=mode, padding_idx=padding_idx)))
    reference = Words(PlainEmbedding(net.embedding.weight, padding_idx, bag=mode)).double()
    reference.head.load_state_dict(net.head.state_dict())
    assert relative_error(gradient(net, word_tasks(), way), gradient(reference, word_tasks(), way)) < 1e-10


class PlainWeightNorm(nn.Module):
    """A linear layer of lengths and directions, in plain operators."""

    def __init__(self, layer):
        super().__init__()
        self.bias = nn.Parameter(layer.bias.detach().clone())
        own = layer.parametrizations.weight
        self.g, self.v = (nn.Parameter(p.detach().clone()) for p in (own.original0, own.original1))

    def forward(self, x):
        return F.linear(x, self.v * (self.g / self.v.square().sum(1, keepdim=True).sqrt()), self.bias)


@pytest.mark.parametrize("way", WAYS)
def test_weight_normalization(way):
    """Torch's own has a wrong second derivative on a CPU."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    net = scaled(nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3)))
    reference = nn.Sequential(PlainWeightNorm(net[0]), nn.Tanh(), copy.deepcopy(net[2]))
    assert relative_error(gradient(net, vector_tasks(), way), gradient(reference, vector_tasks(), way)) < 1e-10


@pytest.mark.parametrize("way", WAYS)
def test_hardsigmoid_has_a_second_derivative(way):
    net = scaled(nn.Sequential(nn.Linear(6, 5), nn.Hardsigmoid(), nn.Linear(5, 3)))
    relu6 = type("Relu6", (nn.Module,), {"forward": lambda self, x: F.relu6(x + 3) / 6})
    reference = nn.Sequential(net[0], relu6(), net[2])
    assert relative_error(gradient(net, vector_tasks(), way), gradient(reference, vector_tasks(), way)) < 1e-12


class Checkpointed(nn.Module):
    """Computes its first part again in the backward pass, or keeps it."""

    def __init__(self, again):
        super().__init__()
        self.a, self.b, self.head, self.again = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3), again

    def block(self, x):
        return self.b(self.a(x).tanh()).tanh()

    def forward(self, x):
        return self.head(self.block(x) if self.again is None else checkpoint(self.block, x, use_reentrant=self.again))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_network_that_checkpoints_its_activations(way, reentrant):
    net = scaled(Checkpointed(reentrant))
    plain = Checkpointed(None).double()
    plain.load_state_dict(net.state_dict())
    tasks = vector_tasks()
    assert relative_error(gradient(net, tasks, way), gradient(plain, tasks, "loop")) < 1e-10
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)  # torch's function is as it was
    net(x).sum().backward()
    assert x.grad is not None


class Clamped(nn.Module):
    """Writes into its weights in the forward pass, in one of the ways that networks do."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.w, self.head = nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 3)

    def forward(self, x):
        with torch.no_grad():
            if self.kind == "clamp_":
                self.w.clamp_(-0.4, 0.4)
            elif self.kind == "detach":
                self.w.detach().renorm_(2, 0, 0.7)
            elif self.kind == "data":
                self.w.data.mul_(0.9)
            elif self.kind == "setitem":
                self.w[0] = 0.0
            elif self.kind == "imul":
                w = self.w
                w *= 0.9
        return self.head(F.linear(x, self.w).tanh())

    def written(self, w):
        """What it writes, as a function."""
        w = w.detach()
        return {
            "clamp_": lambda: w.clamp(-0.4, 0.4), "detach": lambda: w.renorm(2, 0, 0.7), "data": lambda: w * 0.9,
            "setitem": lambda: torch.cat([torch.zeros_like(w[:1]), w[1:]]), "imul": lambda: w * 0.9,
        }[self.kind]()  # fmt: skip


def unrolled_with_writes(net, tasks, lr, steps):
    """The meta-gradient by hand, where what is written has no derivative and the next step starts from it."""
    own = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}

    def run(params, x):
        params = params | {"w": params["w"] + (net.written(params["w"]) - params["w"]).detach()}
        hidden = F.linear(x, params["w"]).tanh()
        return F.linear(hidden, params["head.weight"], params["head.bias"]), params

    total = 0.0
    for b in range(len(tasks.support.targets)):
        params = dict(own)
        for _ in range(steps):
            out, params = run(params, tasks.support.inputs[b])
            loss = F.cross_entropy(out, tasks.support.targets[b])
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {name: p - lr * g for (name, p), g in zip(params.items(), grads, strict=True)}
        total = total + F.cross_entropy(run(params, tasks.query.inputs[b])[0], tasks.query.targets[b])
    grads = torch.autograd.grad(total / len(tasks.support.targets), list(own.values()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("way", [*WAYS, "auto"])
@pytest.mark.parametrize("kind", ["clamp_", "detach", "data", "setitem", "imul"])
@pytest.mark.filterwarnings("ignore:torch.vmap cannot run")
def test_what_a_network_writes_into_its_weights_stays_the_tasks(way, kind):
    net, tasks = scaled(Clamped(kind)), vector_tasks()
    before = copy.deepcopy(net.state_dict())
    module = MAMLModule(net, inner_lr=0.3, inner_steps=2, task_parallel=way)
    if kind == "data" and way in ("vmap", 2):
        with pytest.raises(NetworkError, match="task_parallel='loop'"):
            module.meta_loss(tasks)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        return
    for _ in range(2):  # the first finds out that it writes
        net.zero_grad()
        module.meta_loss(tasks).backward()
        found = torch.cat([p.grad.flatten() for p in net.parameters()])
        assert relative_error(found, unrolled_with_writes(net, tasks, 0.3, 2)) < 1e-10
    trainer().test(module, DataLoader([tasks], batch_size=None, collate_fn=lambda b: b), verbose=False)
    module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("way", WAYS)
def test_embeddings_with_a_largest_norm(way):
    net = scaled(Words(nn.Embedding(11, 5, max_norm=1.0)))
    tasks, before = word_tasks(), net.embedding.weight.detach().clone()
    module = MAMLModule(net, inner_lr=0.3, inner_steps=2, task_parallel=way)
    module.meta_loss(tasks).backward()
    found = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.equal(net.embedding.weight, before)

    own = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    total = 0.0
    for b in range(3):
        params = dict(own)

        def run(params, x):
            w = params["embedding.weight"]
            lengths = w.detach().norm(dim=1, keepdim=True)
            used = torch.isin(torch.arange(11), x).unsqueeze(1) & (lengths > 1)
            w = w + torch.where(used, w / (lengths + 1e-7) - w, 0).detach()
            out = F.linear(w[x].mean(1).tanh(), params["head.weight"], params["head.bias"])
            return out, params | {"embedding.weight": w}

        for _ in range(2):
            out, params = run(params, tasks.support.inputs[b])
            loss = F.cross_entropy(out, tasks.support.targets[b])
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {name: p - 0.3 * g for (name, p), g in zip(params.items(), grads, strict=True)}
        total = total + F.cross_entropy(run(params, tasks.query.inputs[b])[0], tasks.query.targets[b])
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total / 3, list(own.values()))])
    assert relative_error(found, expected) < 1e-10


def transcription_loss(predictions, targets):
    """CTC, which has no second derivative in torch."""
    logs = F.log_softmax(predictions, -1).unsqueeze(1)
    return F.ctc_loss(logs, torch.tensor([[1, 2]]), torch.tensor([len(predictions)]), torch.tensor([2]))


def test_an_operator_without_a_second_derivative_is_named():
    tasks = vector_tasks()
    message = r"_ctc_loss_backward, .* has no second derivative\. first_order=True needs none"
    with pytest.raises(NetworkError, match=message):
        MAMLModule(nn.Linear(6, 3).double(), loss=transcription_loss, task_parallel="loop").meta_loss(tasks)
    data = DataLoader([tasks], batch_size=None, collate_fn=lambda batch: batch)
    with pytest.raises(NetworkError, match=message):
        trainer(precision="64-true").fit(MAMLModule(nn.Linear(6, 3), loss=transcription_loss), data)
    gradient(nn.Linear(6, 3).double(), tasks, "vmap", loss=transcription_loss, first_order=True)


SPECTRAL_NORMS = [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", SPECTRAL_NORMS)
def test_spectral_norms(way, norm):
    torch.manual_seed(0)
    net, tasks = nn.Sequential(norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)).double(), vector_tasks()
    plain = copy.deepcopy(net)  # the older one leaves its weight in the layer
    own = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    total = 0
    for support, query in pairs(tasks):
        params, buffers = dict(own), {name: buffer.clone() for name, buffer in net.named_buffers()}
        for _ in range(2):
            loss = F.cross_entropy(functional_call(plain, params | buffers, (support[0],)), support[1])
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {n: p - 0.3 * g for (n, p), g in zip(params.items(), gradients, strict=True)}
        total = total + F.cross_entropy(functional_call(plain, params | buffers, (query[0],)), query[1]) / 4
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(own.values()))])
    assert relative_error(gradient(net, tasks, way), expected) < 1e-10


@pytest.mark.parametrize("norm", SPECTRAL_NORMS)
def test_spectral_norms_follow_the_weights(norm):
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3))
    module = MAMLModule(net, 0.1, optimizer=lambda params: torch.optim.Adam(params, 0.1))
    data = [vector_tasks(dtype=torch.float32, seed=seed) for seed in range(40)]
    trainer(max_epochs=1).fit(module, DataLoader(data, batch_size=None, collate_fn=lambda batch: batch))
    adapted = module.adapt_to(torch.randn(3, 6), torch.arange(3))
    assert torch.isfinite(adapted(torch.zeros(1, 6))).all()
    net.eval()(torch.zeros(1, 6))
    assert torch.linalg.matrix_norm(net[0].weight, 2).item() == pytest.approx(1, abs=0.01)


class Remembering(nn.Module):
    """Keeps tensors as plain attributes: a cache of what depends on weights, and an activation to look at."""

    def __init__(self):
        super().__init__()
        self.a, self.head, self.cache, self.features = nn.Linear(6, 5), nn.Linear(5, 3), {}, None

    def forward(self, x):
        if "weight" not in self.cache:
            self.cache["weight"] = self.a.weight.tanh()
        self.features = F.linear(x, self.cache["weight"], self.a.bias)
        return self.head(self.features.tanh())


class Forgetting(Remembering):
    """The same without a cache."""

    def forward(self, x):
        return self.head(F.linear(x, self.a.weight.tanh(), self.a.bias).tanh())


@pytest.mark.parametrize("way", WAYS)
def test_caches_of_one_task_are_not_seen_by_another(way):
    net, tasks = scaled(Remembering()), vector_tasks()
    plain = Forgetting().double()
    plain.load_state_dict(net.state_dict())
    modules = [MAMLModule(n, inner_lr=0.3, inner_steps=2, task_parallel=way) for n in (net, plain)]
    gradients = []
    for module in modules:
        module.meta_loss(tasks).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.network.parameters()]))
    assert relative_error(*gradients) < 1e-10
    assert net.cache == {}
    assert net.features is None
    adapted = [m.adapt_to(tasks.support.inputs[0], tasks.support.targets[0]) for m in modules]
    torch.testing.assert_close(*(network(tasks.query.inputs[0]) for network in adapted))
    modules[0].meta_loss(Task(*(Examples(p.inputs[:2], p.targets[:2]) for p in tasks))).backward()  # another size


def test_a_loss_may_read_what_the_network_keeps_of_one_task():
    net, tasks = scaled(Remembering()), vector_tasks()

    def loss(predictions, targets):
        return F.cross_entropy(predictions, targets) + net.features.square().mean()

    own = MAMLModule(net, inner_lr=0.3, loss=loss, task_parallel="loop")
    found = own.meta_loss(tasks)
    with pytest.warns(UserWarning, match="one after another"):
        assert MAMLModule(net, inner_lr=0.3, loss=loss).meta_loss(tasks).item() == pytest.approx(
            found.item(), rel=1e-12
        )


class Counting(nn.Module):
    """Assigns a buffer, in place of writing into it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x):
        self.shift = self.shift + 1.0
        return self.head(x) * self.shift


@pytest.mark.parametrize("way", WAYS)
def test_buffers_that_are_assigned_are_carried_from_step_to_step(way):
    net, tasks = scaled(Counting()), vector_tasks(dtype=torch.float64)
    module = MAMLModule(net, inner_lr=0.3, inner_steps=2, task_parallel=way)
    found = module.meta_loss(tasks).item()
    params = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    total = 0.0
    for b in range(len(tasks.support.targets)):
        own = dict(params)
        for step in range(2):
            out = F.linear(tasks.support.inputs[b], own["head.weight"], own["head.bias"]) * (step + 1)
            grads = torch.autograd.grad(F.cross_entropy(out, tasks.support.targets[b]), list(own.values()))
            own = {n: p - 0.3 * g for (n, p), g in zip(own.items(), grads, strict=True)}
        out = F.linear(tasks.query.inputs[b], own["head.weight"], own["head.bias"]) * 3
        total += F.cross_entropy(out, tasks.query.targets[b]).item()
    assert found == pytest.approx(total / len(tasks.support.targets), rel=1e-10)
    assert net.shift.item() == 0


@pytest.mark.parametrize("way", [*WAYS, "auto"])
def test_gradient_hooks_of_parameters_run_once(way):
    net, tasks = scaled(nn.Linear(6, 3)), vector_tasks()
    expected = gradient(net, tasks, "vmap") * 0.1
    for parameter in net.parameters():
        parameter.register_hook(lambda g: g * 0.1)
    MAMLModule(net, inner_lr=0.3, inner_steps=2, task_parallel=way).meta_loss(tasks).backward()
    assert relative_error(torch.cat([p.grad.flatten() for p in net.parameters()]), expected) < 1e-10


@pytest.mark.parametrize("way", WAYS)
def test_complex_parameters(way):
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 3, dtype=torch.complex128))

        def forward(self, x):
            return (x.to(self.w.dtype) @ self.w).abs()

    torch.manual_seed(0)
    net, tasks = Complex(), vector_tasks()
    own = net.w.detach().clone().requires_grad_()
    total = 0.0
    for b in range(len(tasks.support.targets)):

        def run(w, x):
            return functional_call(net, {"w": w}, (x,))

        (g,) = torch.autograd.grad(
            F.cross_entropy(run(own, tasks.support.inputs[b]), tasks.support.targets[b]), own, create_graph=True
        )
        total = total + F.cross_entropy(run(own - 0.3 * g, tasks.query.inputs[b]), tasks.query.targets[b])
    (expected,) = torch.autograd.grad(total / len(tasks.support.targets), own)
    found = gradient(net, tasks, way, inner_steps=1)
    assert ((found - expected.flatten()).abs().max() / expected.abs().max()).item() < 1e-10


@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_part_keeps_its_running_statistics(affine):
    body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=affine)).requires_grad_(False)
    body[1].running_mean.fill_(3.0)
    body[1].running_var.fill_(9.0)
    net, tasks = nn.Sequential(body, nn.Linear(5, 3)).double(), vector_tasks()
    module = MAMLModule(net, inner_steps=0)
    hidden = (body[0](tasks.query.inputs[0]) - 3) / (9 + 1e-5) ** 0.5
    expected = F.cross_entropy(net[1](hidden), tasks.query.targets[0]).item()
    module.meta_loss(tasks)
    assert module.outcome.losses[0].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_batch_normalization_called_by_keyword(way):
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.norm(input=self.a(x)))

    net, tasks = scaled(Keyword()), vector_tasks()
    module = MAMLModule(net, task_parallel=way, transductive=False)
    module.adapt_to(tasks.support.inputs[0], tasks.support.targets[0])(tasks.query.inputs[0])
    trainer().test(module, DataLoader([tasks], batch_size=None, collate_fn=lambda b: b), verbose=False)


@pytest.mark.parametrize("kind", [MAMLModule, IMAMLModule, ReptileModule])
def test_a_network_that_differentiates_in_its_forward_pass(kind):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 1)

        def forward(self, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.b(self.a(x).tanh()).sum(), x, create_graph=True)[0]

    x = torch.randn(3, 4, 6)
    tasks = Task(Examples(x, x.sin()), Examples(x, x.sin()))
    module = kind(Field(), loss=F.mse_loss)
    module.meta_loss(tasks).backward()
    loader = DataLoader([tasks], batch_size=None, collate_fn=lambda b: b)
    (row,) = trainer().test(module, loader, verbose=False)
    assert row["test/query_loss"] < row["test/query_loss_before"]
    assert not trainer().predict(module, loader)[0].requires_grad


# Metrics and losses


def test_the_accuracy_is_along_the_dimension_of_the_classes():
    torch.manual_seed(0)
    net = nn.Conv2d(1, 8, 1)
    x, y = torch.randn(3, 4, 1, 8, 8), torch.randint(8, (3, 4, 8, 8))  # as many classes as pixels in a row
    module = MAMLModule(net, inner_steps=0)
    module.meta_loss(Task(Examples(x, y), Examples(x, y)))
    right = torch.stack([(net(x[b]).argmax(1) == y[b]).float().mean() for b in range(3)])
    torch.testing.assert_close(module.outcome.metrics["query_accuracy"], right)


@pytest.mark.parametrize(
    ("net", "loss", "targets"),
    [
        (nn.Linear(6, 1), lambda p, t: F.binary_cross_entropy_with_logits(p.squeeze(-1), t.float()), (4,)),
        (nn.Linear(6, 4), lambda p, t: F.binary_cross_entropy_with_logits(p, t.float()), (4, 4)),
    ],
)
def test_no_accuracy_is_reported_of_what_are_not_logits_of_classes(net, loss, targets):
    x, y = torch.randn(3, 4, 6), torch.randint(2, (3, *targets))
    module = MAMLModule(net, loss=loss)
    module.meta_loss(Task(Examples(x, y), Examples(x, y)))
    assert module.outcome.metrics == {}


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_outputs_of_any_nesting_with_a_loss_that_takes_them(kind):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            logits = self.head(x)
            return {"logits": logits, "inputs": x} if kind == "dict" else (logits, x)

    def logits(outputs):
        return outputs["logits"] if kind == "dict" else outputs[0]

    net, tasks = scaled(Several()), vector_tasks()
    found = gradient(net, tasks, "vmap", loss=lambda p, t: F.cross_entropy(logits(p), t))
    assert relative_error(found, gradient(net.head, tasks)) < 1e-12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss, lambda p, t: F.mse_loss(p, t), lambda p, t: (p - t).square().mean(), nn.PoissonNLLLoss(),
        lambda p, t: F.gaussian_nll_loss(p, t, torch.ones_like(p)), lambda p, t: F.huber_loss(p, t, delta=0.5),
    ],
)  # fmt: skip
def test_a_loss_that_would_broadcast_is_refused(way, loss):
    x = torch.randn(3, 4, 6)
    tasks = Task(Examples(x, x[..., 0]), Examples(x, x[..., 0]))
    with pytest.raises(ConfigurationError, match="same shape"):
        MAMLModule(nn.Linear(6, 1), loss=loss, task_parallel=way).meta_loss(tasks)


def test_a_loss_that_compares_every_pair_on_purpose_is_not():
    def contrast(p, t):
        same = t.unsqueeze(1) == t
        return (torch.cdist(p, p) * same).mean()

    x, y = torch.randn(3, 4, 6), torch.tensor([0, 1, 0, 1]).expand(3, 4)
    assert MAMLModule(nn.Linear(6, 2), loss=contrast).meta_loss(Task(Examples(x, y), Examples(x, y))).isfinite()


# Habits of Lightning users


def fitted_rates(configure, **options):
    """The rates after two epochs of five outer steps."""
    own = type("Own", (MAMLModule,), {"configure_optimizers": configure})
    torch.manual_seed(0)
    module = own(MLP(), inner_lr=0.01, loss=F.mse_loss, **options)
    own_trainer = trainer(max_epochs=2)
    own_trainer.fit(module, sinusoids(meta_batch_size=2, steps_per_epoch=5, val_tasks=2))
    return [optimizer.param_groups[0]["lr"] for optimizer in own_trainer.optimizers]


def of(*schedulers):
    def configure(self):
        optimizer = torch.optim.SGD(self.parameters(), 1e-3)
        return [optimizer], [make(optimizer) for make in schedulers]

    return configure


@pytest.mark.parametrize(
    ("configure", "expected"),
    [
        (of(lambda o: StepLR(o, 1, 0.1)), 1e-5),  # an epoch is Lightning's default
        (of(lambda o: {"scheduler": StepLR(o, 1, 0.1), "interval": "epoch"}), 1e-5),
        (of(lambda o: {"scheduler": StepLR(o, 1, 0.1), "interval": "epoch", "frequency": 2}), 1e-4),
        (of(lambda o: {"scheduler": StepLR(o, 1, 0.5), "interval": "step"}), 1e-3 * 0.5**10),
        (of(lambda o: {"scheduler": StepLR(o, 1, 0.1), "interval": "step", "frequency": 5}), 1e-5),
        (
            of(
                lambda o: {"scheduler": LambdaLR(o, lambda i: 0.5**i), "interval": "step"},
                lambda o: {"scheduler": StepLR(o, 100), "interval": "step"},
            ),
            1e-3 * 0.5**10,
        ),
        (
            of(lambda o: {"scheduler": ReduceLROnPlateau(o, patience=0, threshold=1e9), "monitor": "val/query_loss"}),
            1e-5,
        ),
        (of(lambda o: {"scheduler": ReduceLROnPlateau(o, patience=0), "monitor": "no", "strict": False}), 1e-3),
    ],
)
def test_schedulers_are_stepped_as_lightnings_dictionary_says(configure, expected):
    assert fitted_rates(configure) == [pytest.approx(expected, rel=1e-6)]


def test_a_scheduler_that_monitors_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="'no', which is not logged"):
        fitted_rates(of(lambda o: {"scheduler": ReduceLROnPlateau(o), "monitor": "no"}))


def test_several_optimizers_are_refused():
    def two(self):
        first, *others = self.parameters()
        return [torch.optim.SGD([first], 0.1), torch.optim.SGD(others, 0.1)]

    with pytest.raises(ConfigurationError, match="2 optimizers"):
        fitted_rates(two)


def test_callbacks_get_the_loss():
    seen = []
    watch = pl.Callback()
    watch.on_train_batch_end = lambda trainer, module, outputs, *_: seen.append(outputs)
    trainer(callbacks=[watch]).fit(sinusoid_module(), sinusoids(steps_per_epoch=3))
    assert len(seen) == 3
    assert all(out["loss"].isfinite() for out in seen)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (TensorDataset(torch.rand(20, 6), torch.arange(20) % 3), ArgumentTypeError),
        ([{"train": (torch.rand(4, 6), torch.arange(4) % 3), "test": (torch.rand(4, 6), torch.arange(4) % 3)}],
         ArgumentTypeError),
        ([Task(Examples(torch.rand(6, 6), torch.arange(6) % 3), Examples(torch.rand(6, 6), torch.arange(6) % 3))],
         ConfigurationError),
    ],
)  # fmt: skip
def test_a_loader_of_something_else_than_batches_of_tasks_is_refused(data, error):
    loader = DataLoader(data, batch_size=None, collate_fn=lambda b: b)
    module = MAMLModule(nn.Linear(6, 3))
    with pytest.raises(error, match="Task"):
        trainer().fit(module, loader)
    with pytest.raises(error, match="Task"):
        trainer().test(module, loader, verbose=False)


def test_a_module_by_itself_says_what_predicts():
    with pytest.raises(ConfigurationError, match="adapt_to"):
        MAMLModule(nn.Linear(6, 3))(torch.rand(2, 6))
    with pytest.raises(ConfigurationError, match="adapt_to"):
        MAMLModule(nn.Linear(6, 3)).to_onnx("a.onnx", torch.rand(2, 6))


def test_one_batch_for_ever_is_refused():
    with pytest.raises(ConfigurationError, match="overfit_batches"):
        trainer(overfit_batches=1).fit(sinusoid_module(), sinusoids())


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_are_frozen_after_construction_are_left_alone(way):
    net, tasks = scaled(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))), vector_tasks()
    module = MAMLModule(net, inner_lr=0.3, inner_steps=2, task_parallel=way)
    net[0].requires_grad_(False)
    module.meta_loss(tasks).backward()
    assert net[0].weight.grad is None
    found = torch.cat([p.grad.flatten() for p in net[2].parameters()])
    frozen = MAMLModule(copy.deepcopy(net), inner_lr=0.3, inner_steps=2)
    frozen.network.zero_grad()
    frozen.meta_loss(tasks).backward()
    assert relative_error(found, torch.cat([p.grad.flatten() for p in frozen.network[2].parameters()])) < 1e-10


def compiled_inside(net):
    net.compile()
    return nn.Sequential(net)


@pytest.mark.parametrize("wrap", [torch.jit.script, nn.DataParallel, torch.compile, compiled_inside])
def test_networks_that_cannot_be_meta_learned_are_refused(wrap):
    with pytest.raises(ConfigurationError, match=r"network\.module|scripted|compiled by .*compile=True"):
        MAMLModule(wrap(nn.Linear(6, 2)))


@pytest.mark.parametrize("kind", [MAMLModule, ReptileModule, IMAMLModule])
def test_modules_can_be_pickled(kind):
    module = kind(nn.Linear(6, 3).double())
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again.meta_loss(vector_tasks()), module.meta_loss(vector_tasks()))
    kinds = [type(each.configure_optimizers()) for each in (module, again)]
    assert kinds[0] is kinds[1]
    data = DataLoader([vector_tasks(dtype=torch.float32)], batch_size=None, collate_fn=lambda batch: batch)
    trainer(precision="64-true").fit(module, data)
    pickle.dumps(module)


def test_tasks_of_different_sizes_are_stacked():
    tasks = [map_tensors(lambda t: t[0], vector_tasks(tasks=1, k_shot=k, n_query=4 - k, seed=k)) for k in (1, 2, 3)]
    net = scaled(nn.Linear(6, 3))
    alone = [gradient(net, map_tensors(lambda t: t.unsqueeze(0), task)) for task in tasks]
    batch = stack_tasks(tasks)
    assert batch.support.mask.sum(1).tolist() == [3, 6, 9]
    for way in WAYS:
        assert relative_error(gradient(net, batch, way), sum(alone) / 3) < 1e-10
    assert stack_tasks([tasks[0]] * 2).support.mask is None
    assert stack_tasks([map_tensors(lambda t, b=b: t[b], batch) for b in range(3)]).support.mask.equal(
        batch.support.mask
    )
    with pytest.raises(ConfigurationError, match="cannot be stacked"):
        stack_tasks([tasks[0], map_tensors(lambda t: t[..., :2] if t.dim() == 2 else t, tasks[0])])


def test_what_is_no_tensor_in_a_task_is_refused():
    tasks = vector_tasks()
    named = Task(tasks.support._replace(inputs={"x": tasks.support.inputs, "name": ["a"]}), tasks.query)
    with pytest.raises(ArgumentTypeError, match=r"holds inputs\['name'\]\[0\], a str"):
        trainer().fit(MAMLModule(nn.Linear(6, 3)), DataLoader([named], batch_size=None, collate_fn=lambda b: b))


def test_a_hook_of_ones_own_around_checkpoints_loses_nothing(tmp_path):
    class Mine(MAMLModule):
        def on_save_checkpoint(self, checkpoint):  # empty in Lightning, so overridden without super()
            checkpoint["mine"] = 1

    own = trainer(tmp_path)
    own.fit(Mine(MLP(hidden=[8]), 0.01, loss=F.mse_loss), sinusoids(steps_per_epoch=1))
    own.save_checkpoint(tmp_path / "a.ckpt")
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert kept["mine"] == 1
    assert kept["meta"]["seed"] is not None
    assert {"torch", "numpy", "python"} <= set(kept["meta"]["random_state"])


def test_a_checkpoint_without_its_network_says_what_to_give(tmp_path):
    own = trainer(tmp_path)
    own.fit(sinusoid_module(), sinusoids(steps_per_epoch=1))
    own.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="network="):
        MAMLModule.load_from_checkpoint(tmp_path / "a.ckpt")


def test_classes_are_those_that_a_data_set_returns():
    class Coarse(Dataset):
        def __init__(self):
            self.targets = [i // 6 for i in range(60)]
            self.data, self.target_transform = torch.arange(60.0).view(-1, 1), lambda t: t // 5

        def __len__(self):
            return 60

        def __getitem__(self, i):
            return self.data[i], self.target_transform(self.targets[i])

    dataset = Coarse()
    data = EpisodicDataModule(dataset, n_way=2, k_shot=2, n_query=2, meta_batch_size=8)
    data.setup("fit")
    tasks = next(iter(data.train_dataloader()))
    for inputs, targets in zip(tasks.support.inputs, tasks.support.targets, strict=True):
        returned = [dataset[int(i)][1] for i in inputs.flatten()]
        assert len(set(zip(returned, targets.tolist(), strict=True))) == 2
        assert set(returned) == {0, 1}


def test_several_validation_and_test_loaders_are_measured_apart():
    parts = [sinusoids(k_shot=k, val_tasks=4, test_tasks=4, steps_per_epoch=2) for k in (1, 10)]
    for part in parts:
        part.setup()
    own = trainer()
    own.fit(sinusoid_module(), parts[0].train_dataloader(), [part.val_dataloader() for part in parts])
    assert own.callback_metrics["val/query_loss/loader_0"] != own.callback_metrics["val/query_loss/loader_1"]
    row, *_ = own.test(sinusoid_module(), [part.test_dataloader() for part in parts], verbose=False)
    assert row["test/query_loss/loader_0"] != row["test/query_loss/loader_1"]


def test_a_fit_that_ended_early_leaves_nothing_in_the_way_of_the_next():
    module = sinusoid_module(lr_scheduler=lambda o: StepLR(o, 1))
    before = dict(vars(module))
    broken = pl.Callback()
    broken.setup = lambda *_, stage: pytest.fail("nothing today")
    with pytest.raises(pytest.fail.Exception, match="nothing today"):
        trainer(callbacks=[broken]).fit(module, sinusoids())
    trainer().fit(module, sinusoids(steps_per_epoch=1))
    assert vars(module).keys() == before.keys()


def test_statistics_are_taken_without_writing_into_weights_either():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.norm, self.head = nn.Parameter(torch.randn(5, 6)), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x):
            with torch.no_grad():
                self.w.clamp_(-0.4, 0.4)
            return self.head(self.norm(F.linear(x, self.w)))

    net, tasks = scaled(Body()), vector_tasks()
    before = copy.deepcopy(net.state_dict())
    module = MAMLModule(net, transductive=False, adapt_only="head", task_parallel="loop")
    loader = DataLoader([tasks], batch_size=None, collate_fn=lambda b: b)
    for _ in range(2):
        trainer().test(module, loader, verbose=False)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Viewed(nn.Module):
    """Flattens by `view`, which takes images as torch's own layers leave them."""

    def __init__(self, size):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * size**2, 3)

    def forward(self, x):
        x = self.body(x).tanh()
        return self.head(x.view(x.size(0), -1))


def viewing_loss(predictions, targets):
    return F.mse_loss(predictions.view(-1), targets.view(-1))


@pytest.mark.parametrize("way", ["vmap", "loop"])
@pytest.mark.parametrize("size", [6, 14])
@pytest.mark.parametrize("rounded", [False, True])
def test_images_may_be_viewed(way, size, rounded):
    """In a network and in a loss, whatever their order in memory is."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(3, 6, 1, size, size, generator=draw)
    labels, pictures = torch.arange(6).div(2, rounding_mode="floor").expand(3, 6), images.repeat(1, 1, 3, 1, 1)
    picturing = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))
    for net, targets, loss in ((Viewed(size), labels, F.cross_entropy), (picturing, pictures, viewing_loss)):
        tasks = Task(Examples(images, targets), Examples(images + 1, targets))
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            found = gradient(scaled(net).float(), tasks, way, loss=loss)
        expected = gradient(
            net.double(), map_tensors(lambda t: t.double() if t.is_floating_point() else t, tasks), loss=loss
        )
        assert relative_error(found.double(), expected) < (0.1 if rounded else 1e-4)
