"""Networks and tasks at random: what any algorithm makes of them is right in every way of running tasks, or an error.

The reference is a loop by hand in plain torch, where there is one; for the other algorithms it is the package's own
loop, with finite differences of the meta-loss. `--random-networks N` tries more than a few.
"""

import contextlib
import copy
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, event, given, reject, seed, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_meta import (
    CAVIAModule,
    IMAMLModule,
    MAMLModule,
    MetaLSTMModule,
    MetaOptNetModule,
    ProtoMAMLModule,
    ProtoNetModule,
    R2D2Module,
    ReptileModule,
    Task,
)
from lightning_meta.errors import LightningMetaError, NetworkError
from lightning_meta.inner import LSLR, SGD, LSTMOptimizer, MetaCurvature, MetaSGD
from lightning_meta.task import map_tensors
from tests.by_hand import RATE, by_hand, each_task, run
from tests.conftest import on_device
from tests.random_networks import WITHOUT_DERIVATIVE, Centring, Remembering, network, one_of, tasks_for

WAYS = ("loop", "vmap", 2, "auto")
TOLERANCE = 1e-8


def without_checkpoints(options):
    return {key: value for key, value in options.items() if key != "checkpoint_inner_steps"}


def maml(optimizer=SGD, **fixed):
    return lambda net, o, loss: MAMLModule(net, loss=loss, inner_optimizer=optimizer(RATE), **o | fixed)


def head(module):
    return lambda net, o, loss: module(net, **{k: o[k] for k in ("task_parallel", "transductive")})


ALGORITHMS = {
    "maml": maml(),
    "first order": maml(first_order=True),
    "meta_sgd": maml(MetaSGD),
    "maml++": maml(LSLR, multi_step_loss_steps=9),
    "reptile": lambda net, o, loss: ReptileModule(net, SGD(RATE), loss=loss, **without_checkpoints(o)),
    "protonet": head(ProtoNetModule),
    "meta_curvature": maml(MetaCurvature),
    "meta_lstm": lambda net, o, loss: MetaLSTMModule(net, LSTMOptimizer(2, (0, 1), (-1, 1)), loss=loss, **o),
    "imaml": lambda net, o, loss: IMAMLModule(net, SGD(RATE), loss=loss, **without_checkpoints(o)),
    "cavia": lambda net, o, loss: CAVIAModule(
        net, RATE, o["inner_steps"], context="body.context", loss=loss, transductive=o["transductive"],
        task_parallel=o["task_parallel"],
    ),
    "r2d2": head(R2D2Module),
    "metaoptnet": head(MetaOptNetModule),
    "protomaml": lambda net, o, loss: ProtoMAMLModule(net, RATE / 3, **o | {"adapt_only": None}),
}  # fmt: skip
BY_HAND = ("maml", "first order", "meta_sgd", "maml++", "reptile", "protonet")
HEADS = ("protonet", "r2d2", "metaoptnet", "protomaml")
DIFFERENTIATED = ("maml", "meta_sgd", "protonet", "meta_curvature", "cavia", "r2d2", "metaoptnet", "protomaml")
"""Those whose meta-gradient is the derivative of the meta-loss."""


class Case(NamedTuple):
    """A network, tasks, and what is to be made of them."""

    algorithm: str
    net: nn.Module
    tasks: Task
    loss: Any
    options: dict[str, Any]

    def module(self, way, net=None):
        """With a copy of its network, or of another one."""
        torch.manual_seed(1)
        options = self.options | {"task_parallel": way, "transductive": False}
        own = copy.deepcopy(self.net if net is None else net)
        module = on_device(ALGORITHMS[self.algorithm](own, options, self.loss).double())
        for parameter in module.algorithm.parameters():  # away from special values
            parameter.data += 0.05 * torch.randn_like(parameter)
        return module


@st.composite
def cases(draw, algorithm):
    n_way, has_mask = draw(st.integers(1, 3)), one_of(draw, False, False, True)
    needs = {"bias": algorithm in HEADS, "context": algorithm == "cavia"}
    net, shapes = network(draw, n_way, **needs)
    # A layer that itself mixes examples sees what stands in the padding.
    assume(not has_mask or not any(isinstance(m, Centring) for m in net.modules()))
    labels = one_of(
        draw, "each class", "each class", "at random", "one class", *(() if algorithm in HEADS else ("numbers",))
    )
    tasks = tasks_for(draw, shapes, n_way, labels, has_mask)
    options = {
        "inner_steps": draw(st.integers(1, 3)),
        "adapt_only": one_of(draw, None, None, "head", "body", "*.bias", *dict(net.named_parameters())),
        "checkpoint_inner_steps": one_of(draw, False, True),
    }
    return Case(algorithm, on_device(net), on_device(tasks), F.mse_loss if labels == "numbers" else None, options)


# What is compared.


def meta_gradient(module, tasks):
    """The meta-loss and the meta-gradient by name, after a look whether anything else is written into."""
    before, data = copy.deepcopy(module.state_dict()), copy.deepcopy(tasks)
    module.zero_grad()
    loss = module.meta_loss(tasks)
    assert all(p.grad is None for p in module.parameters())
    loss.backward()
    unchanged(module, before, tasks, data)
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return loss.detach(), {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in own.items()}


def unchanged(module, before, tasks, data):
    assert all(map(torch.equal, module.state_dict().values(), before.values())), "written into the network"
    map_tensors(lambda a, b: pytest.fail("written into the tasks") if not torch.equal(a, b) else a, tasks, data)
    kept = [part for part in module.modules() if isinstance(part, Remembering)]
    assert all(part.seen is None and not part.cache for part in kept)


def difference(found, expected):
    """The largest relative error among tensors by name, to what is not noise beside the largest of them."""
    largest = max([1e-3, *(t.abs().max().item() for t in expected.values())])
    errors = {n: (found[n] - t).abs().max() / t.abs().max().clamp(min=1e-2 * largest) for n, t in expected.items()}
    errors = {n: error.nan_to_num(nan=torch.inf).item() for n, error in errors.items()}
    return max(errors.items(), key=lambda pair: pair[1], default=("", 0.0))


def compare(case, found, expected, reference, what):
    """Found is as expected; `reference` makes that of another network, to see how much rounding matters here."""
    name, error = difference(found, expected)
    if error <= TOLERANCE:
        return
    shaken = copy.deepcopy(case.net)
    for parameter in shaken.parameters():
        parameter.data *= 1 + 1e-14 * torch.randn_like(parameter)
    # At a kink, a tie, or a normalization of what is constant, rounding alone makes as much of a difference.
    if difference(reference(shaken), expected)[1] > TOLERANCE:
        event(f"noise: {what}")
        reject()
    pytest.fail(f"{what}: {name} differs by {error:.1e}")


def finite_differences(case, module, gradient):
    """The derivative of the meta-loss along a direction, by the gradient and by differences of values.

    The latter is nothing where differences of two sizes do not agree, as at a kink.
    """
    torch.manual_seed(2)
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    direction = {name: torch.randn_like(p) for name, p in own.items()}

    def value(step):
        moved = copy.deepcopy(module)
        for name, parameter in moved.named_parameters():
            if name in direction:
                parameter.data += step * direction[name]
        return moved.meta_loss(case.tasks).item()

    def slope(eps):
        return (8 * (value(eps) - value(-eps)) - (value(2 * eps) - value(-2 * eps))) / (12 * eps)

    scale = max(sum(g.square().sum().item() for g in gradient.values()) ** 0.5, 1e-2)
    first, second = slope(2e-4), slope(1e-4)
    if not abs(first - second) < 1e-7 * scale:
        event("no finite differences")
        return
    along = sum((gradient[name] * d).sum().item() for name, d in direction.items())
    assert abs(along - second) < 1e-6 * scale, f"finite differences: {along} is {second}"


def is_refused_rightly(case):
    """Whether plain torch cannot run the network, a class has no example, or nothing is left to be trained."""
    if case.algorithm == "protonet" and not any(p.requires_grad for p in case.net.body.parameters()):
        return True
    for support, query, _ in each_task(case.tasks):
        if case.algorithm in HEADS and not set(query[1].tolist()) <= set(support[1].tolist()):
            return True
        for inputs, _ in (support, query):
            own = {n: p.detach().clone().requires_grad_() for n, p in case.net.named_parameters()}
            try:
                out, _ = run(case.net, own, inputs)
                torch.autograd.grad(out.square().sum(), list(own.values()), create_graph=True, materialize_grads=True)
            except (RuntimeError, ValueError):
                return True
    return False


def predictions(case, way, net=None):
    """Of all tasks in evaluation, by the number of the task; and what a network adapted to each predicts."""
    module = case.module(way, net).eval()
    before, data = copy.deepcopy(module.state_dict()), copy.deepcopy(case.tasks)
    with torch.no_grad():
        module.test_step(case.tasks, 0)
        found = {b: out.nan_to_num(neginf=0.0) for b, out in enumerate(module.predict_step(case.tasks, 0))}
    adapted = {}
    for b, (support, query, classes) in enumerate(each_task(case.tasks)):
        known = support[1].unique()
        is_complete = torch.equal(known, classes) and (case.algorithm not in HEADS or len(known) == known.max() + 1)
        if support[1].is_floating_point() or is_complete:
            adapted[b] = module.adapt_to(*support)(copy.deepcopy(query[0])).nan_to_num(neginf=0.0)
    unchanged(module, before, case.tasks, data)
    return found, adapted


def attempt(case):
    try:
        modules = {way: case.module(way) for way in WAYS}
    except LightningMetaError as error:
        event(f"refused: {str(error)[:50]}")
        names = [n for n, p in case.net.named_parameters() if p.requires_grad]
        assert not names or case.options["adapt_only"] or case.algorithm in ("cavia", "protomaml")
        return
    try:
        loss, gradient = meta_gradient(modules["loop"], case.tasks)
    except LightningMetaError as error:
        event(f"cannot run: {str(error)[:50]}")
        if not is_refused_rightly(case):
            raise
        for way in WAYS[1:]:
            with contextlib.suppress(LightningMetaError):
                modules[way].meta_loss(case.tasks)
        return
    assume(loss.isfinite() and all(g.isfinite().all() for g in gradient.values()))
    # Torch refuses to normalize a single value, which a padded task of one example does not have.
    assume(case.tasks.support.mask is None or not is_refused_rightly(case))
    found = gradient | {"loss": loss}

    def by_loop(net):
        loss, gradient = meta_gradient(case.module("loop", net), case.tasks)
        return gradient | {"loss": loss}

    if case.algorithm in BY_HAND:

        def reference(net):
            loss, gradient = by_hand(case, net)
            return gradient | {"loss": loss}

        compare(case, found, reference(case.net), reference, "by hand")
    for way in WAYS[1:]:
        for _ in range(2):  # the first may find out what the network does
            try:
                loss, gradient = meta_gradient(modules[way], case.tasks)
            except NetworkError as error:
                event(str(error)[:70])
                if way == "auto" or "torch.vmap cannot run" not in str(error):
                    raise
                continue
            compare(case, gradient | {"loss": loss}, found, by_loop, f"{way}")
    if case.algorithm in DIFFERENTIATED and not any(isinstance(m, WITHOUT_DERIVATIVE) for m in case.net.modules()):
        finite_differences(case, modules["loop"], gradient)
    try:
        evaluated, adapted = predictions(case, "loop")
    except LightningMetaError as error:  # of support sets alone, which heads are not trained with
        event(f"cannot predict: {str(error)[:50]}")
        if not is_refused_rightly(case):
            raise
        return
    compare(case, predictions(case, "auto")[0], evaluated, lambda net: predictions(case, "loop", net)[0], "predictions")
    # Reptile's evaluation has each query example in the support set; features for a head are made of both sets at once.
    mixes = {"reptile": _BatchNorm, **dict.fromkeys(HEADS, Centring)}.get(case.algorithm, ())
    if not any(isinstance(m, mixes) for m in case.net.modules()):

        def evaluation(net):
            found = predictions(case, "loop", net)[0]
            return {b: found[b][:, : out.shape[1]] for b, out in adapted.items()}

        compare(case, adapted, evaluation(case.net), evaluation, "adapt_to")


@pytest.fixture
def _one_thread():
    """For such small tensors several wait for one another most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(3000)
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_random_networks(request, algorithm):
    count = -(-request.config.getoption("random_networks") // len(ALGORITHMS))
    # After ten networks hypothesis would go on with variations of those, so runs are short, and each begins anew.
    for start in range(0, count, 8):
        options = settings(
            max_examples=min(8, count - start) + 1, deadline=None, database=None, report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        seed(1000 * count + start)(options(given(cases(algorithm))(attempt)))()
