"""Encoders of transformers: the meta-gradient against a loop by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_meta import Examples, MAMLModule, ProtoMAMLModule, Task
from lightning_meta.errors import ArgumentTypeError, ConfigurationError, MissingFileError
from lightning_meta.text import TextClassifier, TextEncoder
from tests.conftest import relative_error
from tests.text.models import save_model

RATE, STEPS = 0.3, 3
KINDS = {"bert": ("sdpa", "eager"), "roberta": ("sdpa", "eager"), "distilbert": ("sdpa", "eager"), "mpnet": ("eager",)}
EXPECTED = {}
CASES = [(kind, attention) for kind, kernels in KINDS.items() for attention in kernels]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, kind) for kind in KINDS}


def text_tasks(is_padded=True, tasks=2, n_way=2, k_shot=1, n_query=1, length=5):
    generator = torch.Generator().manual_seed(0)

    def examples(shots):
        shape = tasks, n_way * shots, length
        ids = torch.randint(4, 25, shape, generator=generator)
        lengths = torch.randint(2, length + 1, shape[:2], generator=generator) if is_padded else torch.tensor(length)
        mask = (torch.arange(length) < lengths.unsqueeze(-1)).expand(shape).long()
        inputs = {"input_ids": torch.where(mask.bool(), ids, 0), "attention_mask": mask}
        return Examples(inputs, torch.arange(n_way).repeat_interleave(shots).expand(tasks, -1))

    return Task(examples(k_shot), examples(n_query))


def network(folder, attention):
    net = TextClassifier(2, folder, attention=attention).double()
    torch.manual_seed(1)
    with torch.no_grad():
        net.head.weight.normal_()
    return net


class Plain(nn.Module):
    """The same network, on unpadded texts one by one, with eager attention."""

    def __init__(self, net):
        super().__init__()
        self.body, self.head = copy.deepcopy(net.body), copy.deepcopy(net.head)
        self.body.model.set_attn_implementation("eager")

    def features(self, inputs):
        model, found = self.body.model, []
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            own = ids[mask.bool()].unsqueeze(0)
            hidden = model(input_ids=own, attention_mask=torch.ones_like(own)).last_hidden_state
            found.append(hidden[0].mean(0))
        found = torch.stack(found)
        return found / found.square().sum(1, keepdim=True).sqrt()

    def forward(self, inputs):
        return self.head(self.features(inputs))


def each_task(tasks):
    for i in range(len(tasks.support.targets)):
        yield [({name: ids[i] for name, ids in part.inputs.items()}, part.targets[i]) for part in tasks]


def by_hand(net, tasks, adapted, prototypes=False):
    """The meta-gradient of the trainable parameters, by torch.autograd.grad through the inner steps."""
    plain = Plain(net)
    start = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    losses = []
    for (support, targets), (query, labels) in each_task(tasks):
        params = {name: p.clone() for name, p in start.items()}  # so that prototypes are given in the inner loop
        if prototypes:
            points = torch.stack([plain.features(support)[targets == c].mean(0) for c in range(2)])
            params |= {"head.weight": 2 * points, "head.bias": -points.square().sum(1)}
        for _ in range(STEPS):
            loss = F.cross_entropy(functional_call(plain, params, (support,)), targets)
            names = [name for name in params if adapted(name)]
            grads = torch.autograd.grad(loss, [params[name] for name in names], create_graph=True)
            params |= {name: params[name] - RATE * grad for name, grad in zip(names, grads, strict=True)}
        losses.append(F.cross_entropy(functional_call(plain, params, (query,)), labels))
    wanted = {name: p for name, p in start.items() if not (prototypes and name.startswith("head."))}
    return dict(zip(wanted, torch.autograd.grad(torch.stack(losses).mean(), list(wanted.values())), strict=True))


def found_by(module, tasks, names):
    module.zero_grad()
    module.meta_loss(tasks).backward()
    own = dict(module.network.named_parameters())
    return [own[name].grad for name in names]


ALGORITHMS = {
    "maml": (lambda net, way: MAMLModule(net, RATE, STEPS, task_parallel=way), lambda name: True, False),
    "anil": (
        lambda net, way: MAMLModule(net, RATE, STEPS, adapt_only="head", task_parallel=way),
        lambda name: name.startswith("head."), False,
    ),
    "protomaml": (lambda net, way: ProtoMAMLModule(net, RATE, STEPS, task_parallel=way), lambda name: True, True),
}  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_the_meta_gradient_is_that_of_a_loop_by_hand(kind, attention, name, folders):
    """Of padded texts, where the loop by hand has each without its padding."""
    make, adapted, prototypes = ALGORITHMS[name]
    net, tasks = network(folders[kind], attention), text_tasks()
    if (kind, name) not in EXPECTED:  # the same for both kernels
        EXPECTED[kind, name] = by_hand(net, tasks, adapted, prototypes)
    expected = EXPECTED[kind, name]
    assert any(name.startswith("body.") for name in expected)
    for way in ("vmap", "loop"):
        found = found_by(make(net, way), tasks, expected)
        assert relative_error(found, list(expected.values())) < 1e-10, way


@pytest.mark.parametrize("kind", KINDS)
def test_texts_without_padding_and_with_more_of_it(kind, folders):
    """The same meta-gradient, as from one transformer call without any mask."""
    net = network(folders[kind], None)
    whole, longer = text_tasks(is_padded=False), text_tasks(is_padded=False)
    longer = Task(*(
        part._replace(inputs={name: F.pad(ids, (0, 7)) for name, ids in part.inputs.items()}) for part in longer
    ))  # fmt: skip
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    found = [found_by(MAMLModule(net, RATE, 1, task_parallel="vmap"), tasks, names) for tasks in (whole, longer)]
    assert relative_error(*map(copy.copy, found)) < 1e-10
    ids = whole.support.inputs["input_ids"][0]
    expected = net.body.model(input_ids=ids).last_hidden_state.mean(1)
    expected = expected / expected.square().sum(1, keepdim=True).sqrt()
    inputs = {name: ids[0] for name, ids in longer.support.inputs.items()}
    assert torch.allclose(net.body(inputs), expected, rtol=0, atol=1e-12)


def test_there_is_no_dropout_in_any_mode(folders):
    from transformers import AutoConfig, AutoModel

    net = TextEncoder(AutoModel.from_config(AutoConfig.from_pretrained(folders["bert"])))
    inputs = {name: ids[0] for name, ids in text_tasks().support.inputs.items()}
    first = net.train()(inputs)
    assert net.training
    assert torch.equal(first, net(inputs))
    assert torch.equal(first, net.eval()(inputs))
    assert torch.equal(first, nn.Sequential(net).train()(inputs))


@pytest.mark.parametrize(("number", "layers"), [(0, set()), (1, {"1"}), (2, {"0", "1"})])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_layers_are_frozen_by_a_number(kind, number, layers, folders):
    net = TextEncoder(folders[kind], trainable_layers=number)
    trained = {name.split("layer.")[1].split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == layers
    assert all(p.requires_grad for p in TextEncoder(folders[kind]).parameters())


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda at: TextEncoder(at, trainable_layers=3),
            ConfigurationError,
            "BertModel has 2 layers. Give a number",
        ),
        (lambda at: TextEncoder(at, pooling="max"), ConfigurationError, "'mean' or 'cls', got 'max'"),
        (lambda at: TextEncoder(nn.Linear(1, 1), attention="sdpa"), ConfigurationError, "give it to from_pretrained"),
        (lambda at: TextClassifier(0, at), ConfigurationError, "n_way to be a whole number of at least 1, got 0"),
        (lambda at: TextClassifier(5, at, scale=-1), ConfigurationError, "scale to be above 0, got -1"),
        (lambda at: TextEncoder(at)(torch.zeros(2, 3)), ArgumentTypeError, "got a Tensor. A TextDataModule"),
        (lambda at: TextEncoder(at)({"ids": torch.zeros(2, 3)}), ArgumentTypeError, "got a dict of ids"),
        (lambda at: TextEncoder(at + "/none"), MissingFileError, "there is no such folder"),
    ],
)
def test_what_is_wrong_is_named(make, kind, message, folders):
    with pytest.raises(kind, match=message):
        make(folders["bert"])
