"""The meta-gradient by hand, in plain torch: what this package's algorithms are compared with on any network."""

import copy
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrizations

from lightning_meta.task import map_tensors
from tests.modules.test_strangers import PlainEmbedding

RATE = 0.3
"""That of all inner loops."""


class PlainWeightNorm(nn.Module):
    """That of torch has a wrong second derivative on a CPU."""

    def forward(self, g, v):
        return v * (g / v.square().flatten(1).sum(1).sqrt().view_as(g))


class PlainHardsigmoid(nn.Module):
    """That of torch has no second derivative."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        found = F.relu6(x + 3) / 6
        return x.copy_(found) if self.inplace else found


class WritingEmbedding(PlainEmbedding):
    """One that writes into its weight, too."""

    def __init__(self, own):
        super().__init__(own.weight, own.padding_idx, own.scale_grad_by_freq)
        self.weight, self.max_norm = own.weight, own.max_norm

    def forward(self, x):
        with torch.no_grad():
            F.embedding(x, self.weight, max_norm=self.max_norm)
        return super().forward(x)


PLAIN = {
    parametrizations._WeightNorm: lambda _: PlainWeightNorm(),
    nn.Hardsigmoid: lambda own: PlainHardsigmoid(own.inplace),
    nn.Embedding: WritingEmbedding,
}


def plain(net):
    """A copy of a network without what torch differentiates wrongly, which normalizes as it is documented."""
    net = copy.deepcopy(net)
    for name, part in list(net.named_modules()):
        if isinstance(part, _NormBase):
            around = name
            while not list(net.get_submodule(around).parameters()):
                around = around.rpartition(".")[0]
            is_frozen = not any(p.requires_grad for p in net.get_submodule(around).parameters())
            part.training = not (is_frozen and part.track_running_stats)
        if type(part) in PLAIN:
            parent, _, last = name.rpartition(".")
            net.get_submodule(parent)._modules[last] = PLAIN[type(part)](part)
    return net


def run(net, state, inputs):
    """Predictions, and the parameters and buffers with what has been written into them."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    return functional_call(plain(net), state, (map_tensors(torch.clone, inputs),)), state


def each_task(tasks):
    """Of each task its real examples, support and query, and the classes that it has."""
    for b in range(len(tasks.support.targets)):
        own = [
            map_tensors(lambda t, b=b, p=p: t[b] if p.mask is None else t[b][p.mask[b]], (p.inputs, p.targets))
            for p in tasks
        ]
        yield *own, torch.cat([targets for _, targets in own]).unique()


def loss_of(case, predictions, targets, classes):
    if case.loss is not None:
        return case.loss(predictions, targets)
    if predictions.shape[1] > 1:
        there = torch.isin(torch.arange(predictions.shape[1], device=classes.device), classes)
        predictions = predictions.masked_fill(~there, -torch.inf)
    return F.cross_entropy(predictions, targets)


def adapted_names(net, pattern):
    """Which parameters the inner loop changes; a tied one has several names, of which the first stands for it."""
    first = {id(p): n for n, p in net.named_parameters()}
    return {
        first[id(p)]
        for n, p in net.named_parameters(remove_duplicate=False)
        if p.requires_grad and any(fnmatchcase(n, of) for of in (pattern, f"{pattern}.*"))
    }


def of_prototypes(case, net, own, support, query, classes):
    """The loss of a task by the distances to the prototypes."""
    state = {n.removeprefix("body."): t for n, t in (own | dict(net.named_buffers())).items() if n.startswith("body.")}
    features, _ = run(net.body, state, map_tensors(lambda *t: torch.cat(t), support[0], query[0]))
    of_support, of_query = features.split([len(support[1]), len(query[1])])
    members = [of_support[support[1] == c] for c in range(int(classes.max()) + 1)]
    points = torch.stack([each.sum(0) / max(len(each), 1) for each in members])
    return loss_of(case, -(of_query.unsqueeze(1) - points).square().sum(2), query[1], classes)


def of_inner_loop(case, net, own, rates, support, query, classes):
    """The losses of a task after each inner step, and how far these have led."""
    names = adapted_names(net, case.options["adapt_only"] or "*")
    state, losses = own | dict(net.named_buffers()), []
    for step in range(case.options["inner_steps"]):
        predictions, after = run(net, state, support[0])
        grads = torch.autograd.grad(
            loss_of(case, predictions, support[1], classes), [after[n] for n in names], materialize_grads=True,
            create_graph=case.algorithm not in ("first order", "reptile"),
        )  # fmt: skip
        state = after | own
        for name, grad in zip(names, grads, strict=True):
            rate = rates.get(f"algorithm.inner_optimizer.rates.{name.replace('.', '/')}", RATE)
            state[name] = after[name] - (rate[step] if case.algorithm == "maml++" else rate) * grad
        inputs, targets = support if case.algorithm == "reptile" else query
        losses.append(loss_of(case, run(net, state, inputs)[0], targets, classes))
    return losses, {name: (own[name] - state[name]).detach() for name in own}


def by_hand(case, net):
    """The meta-loss and the meta-gradient by name of a case's tasks, with this network."""
    own = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters() if p.requires_grad}
    rates = {n: p.detach().requires_grad_() for n, p in case.module("loop", net).named_parameters() if ".rates." in n}
    values, objectives, ways = [], [], []
    for task in each_task(case.tasks):
        if case.algorithm == "protonet":
            losses = [of_prototypes(case, net, own, *task)]
        else:
            losses, way = of_inner_loop(case, net, own, rates, *task)
            ways.append(way)
        values.append(losses[-1].detach())
        objectives.append(sum(losses) / len(losses) if case.algorithm == "maml++" else losses[-1])
    value = sum(values) / len(values)
    if case.algorithm == "reptile":
        return value, {f"network.{name}": sum(way[name] for way in ways) / len(ways) for name in own}
    leaves = {f"network.{n}": p for n, p in own.items()} | rates
    grads = torch.autograd.grad(sum(objectives) / len(objectives), list(leaves.values()), materialize_grads=True)
    return value, dict(zip(leaves, grads, strict=True))
