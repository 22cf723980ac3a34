"""Compiled outer steps: the same meta-gradient, or a reason why not."""

import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_meta import MLP, Examples, MAMLModule, ReptileModule, SinusoidDataModule, Task
from lightning_meta.functional.compilation import MOST_VERSIONS, CompiledFunction
from lightning_meta.inner import SGD
from tests.conftest import image_tasks, relative_error, vector_tasks
from tests.modules.test_contracts import meta_gradient, trainer
from tests.networks import ValueDependent, network


def compiled_and_not(make, tasks):
    _, expected = meta_gradient(make(compile=False), tasks)
    module = make(compile=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile=True")
        for _ in range(2):
            loss, found = meta_gradient(module, tasks)
    return module, loss, found, expected


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first_order", [False, True])
def test_a_compiled_step_has_the_same_meta_gradient(first_order):
    def make(**kwargs):
        torch.manual_seed(0)
        return MAMLModule(MLP(6, 3).double(), 0.1, 2, first_order=first_order, **kwargs)

    module, loss, found, expected = compiled_and_not(make, vector_tasks())
    assert module._program.reason is None
    assert relative_error(found, expected) < 1e-12
    with torch.no_grad():  # it runs with the parameters as they are now
        for p in module.parameters():
            p.add_(0.1)
    changed, gradient = meta_gradient(module, vector_tasks(seed=1))
    module.compiles = False
    again, expected = meta_gradient(module, vector_tasks(seed=1))
    assert changed.item() != loss.item()
    assert changed.item() == pytest.approx(again.item(), rel=1e-12)
    assert relative_error(gradient, expected) < 1e-12
    assert len(module._program._programs) == 1


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()).tanh())


@pytest.fixture
def recorded_only(monkeypatch):
    """Compiled by a backend that changes nothing, for speed: what is recorded is what matters."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda program, **kwargs: compile(program, backend="eager"))


@pytest.mark.timeout(300)
def test_tied_weights_and_changes_between_steps(recorded_only):
    torch.manual_seed(0)
    net = Tied().double()
    compiled, plain = (MAMLModule(net, 0.1, 2, compile=compile) for compile in (True, False))

    def gradient(module):
        module.zero_grad()
        module.meta_loss(vector_tasks()).backward()
        return [p.grad for p in module.parameters() if p.requires_grad]

    def check():
        assert relative_error([g.clone() for g in gradient(compiled)], gradient(plain)) < 1e-12

    check()
    for module in (compiled, plain):
        module.algorithm.inner_steps = 3
    check()
    compiled, plain = (MAMLModule(net, 0.1, 2, adapt_only="head", compile=compile) for compile in (True, False))
    check()
    net.first.weight.requires_grad_(False)
    check()
    assert len(compiled._program._programs) == 2


def test_what_cannot_be_compiled_runs_as_it_is_and_says_why():
    tasks = image_tasks()
    _, expected = meta_gradient(MAMLModule(ValueDependent().double(), 0.1, task_parallel="loop"), tasks)
    torch.manual_seed(0)
    net = ValueDependent().double()
    _, expected = meta_gradient(MAMLModule(net, 0.1, task_parallel="loop"), tasks)
    module = MAMLModule(net, 0.1, task_parallel="loop", compile=True)
    with pytest.warns(UserWarning, match="compile=True: running without, since compiling failed: .*value"):
        _, found = meta_gradient(module, tasks)
    assert relative_error(found, expected) < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meta_gradient(module, tasks)


class Programs:
    """A module whose outer steps are recorded, and the same without, on one network."""

    def __init__(self, net, **options):
        self.net = net.double()
        self.compiled, self.plain = (MAMLModule(self.net, 0.1, compile=c, **options) for c in (True, False))

    def check(self, tasks, programs):
        results = []
        for module in (self.compiled, self.plain):
            module.zero_grad()
            loss = module.meta_loss(tasks)
            loss.backward()
            results.append([loss.detach(), *(p.grad.clone() for p in self.net.parameters())])
        assert relative_error(*results) < 1e-12
        assert len(self.compiled._program._programs) == programs


class Tempered(torch.nn.Module):
    """Has Python values of many kinds."""

    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.tau, self.signs = torch.nn.Linear(6, 3), torch.nn.Dropout(0.0), 1.0, {"all": [1, 1]}

    def forward(self, x):
        return self.drop(self.layer(x)) / self.tau * self.signs["all"][0] * SCALE


SCALE = 1.0


@pytest.mark.timeout(300)
def test_python_values_are_those_of_now(recorded_only, monkeypatch):
    scale = [1.0]
    torch.manual_seed(0)
    net, tasks = Tempered(), vector_tasks()
    both = Programs(net, loss=lambda predictions, targets: F.cross_entropy(predictions, targets) * scale[0])
    both.check(tasks, 1)
    both.check(tasks, 1)
    net.tau = 3.0
    both.check(tasks, 2)
    net.signs["all"][0] = -1
    both.check(tasks, 3)
    net.layer.register_forward_hook(lambda *args: 2 * args[2])
    both.check(tasks, 4)
    scale[0] = 0.5
    both.check(tasks, 5)
    monkeypatch.setattr("tests.functional.test_compilation.SCALE", 4.0)
    both.check(tasks, 6)
    net.drop.p = 1.0
    both.check(tasks, 7)
    net.drop.p = 0.0
    both.check(tasks, 7)


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x["a"]).tanh() - self.b(x["b"])


def test_inputs_go_by_their_names(recorded_only):
    torch.manual_seed(0)
    one, other = vector_tasks().support.inputs, vector_tasks(seed=1).support.inputs
    both, targets = Programs(Two()), vector_tasks().support.targets
    for inputs, programs in (({"a": one, "b": other}, 1), ({"b": other, "a": one}, 2)):
        both.check(Task(Examples(inputs, targets), Examples(inputs, targets)), programs)


class Sorted(torch.nn.Module):
    """Takes values out of torch."""

    def __init__(self, take):
        super().__init__()
        self.layer, self.take = torch.nn.Linear(6, 3), take

    def forward(self, x):
        return self.layer(x[:, self.take(x.abs().mean(0).argsort())]).tanh()


class Counting(torch.nn.Module):
    """Does something else each time."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind, self.calls = torch.nn.Linear(6, 3), kind, 0

    def forward(self, x):
        self.calls += self.kind == "attribute"
        factor = {"attribute": self.calls, "random": random.random(), "numpy": np.random.rand()}[self.kind]
        return self.layer(x) * factor


@pytest.mark.filterwarnings("ignore:compile=True")
@pytest.mark.parametrize("take", [torch.Tensor.tolist, torch.Tensor.numpy, np.asarray])
def test_values_that_leave_torch_are_not_kept(take):
    both = Programs(Sorted(take), task_parallel="loop")
    for seed in range(2):
        both.check(vector_tasks(seed=seed), 0)


@pytest.mark.parametrize("kind", ["attribute", "random", "numpy"])
def test_what_changes_in_each_call_is_not_compiled(kind, recorded_only):
    module = MAMLModule(Counting(kind).double(), 0.1, compile=True)
    with pytest.warns(UserWarning, match="compile=True: running without, .*changes Python values"):
        module.meta_loss(vector_tasks())
    assert module.meta_loss(vector_tasks()) != module.meta_loss(vector_tasks())


def test_values_that_change_in_every_step_end_compiling(recorded_only):
    torch.manual_seed(0)
    both = Programs(Tempered())
    for step in range(MOST_VERSIONS):
        both.net.tau = 1.0 + step
        both.check(vector_tasks(), step + 1)
    both.net.tau = 0.5
    with pytest.warns(UserWarning, match=r"were others in 8 outer steps.*buffer"):
        both.check(vector_tasks(), MOST_VERSIONS)


def test_steps_that_all_differ_are_not_compiled():
    module = ReptileModule(network("mlp"), SGD(0.1), inner_batch_size=2, compile=True)
    meta_gradient(module, image_tasks())
    assert not module._program._programs
    maml = MAMLModule(network("mlp"), 0.1, 2, multi_step_loss_steps=5, compile=True)
    meta_gradient(maml, image_tasks())
    assert not maml._program._programs
    assert maml._program.reason is None


def test_an_error_of_the_function_is_its_own():
    def broken(tensors):
        raise KeyError("my own mistake")

    with pytest.warns(UserWarning, match="my own mistake"), pytest.raises(KeyError, match="my own mistake"):
        CompiledFunction()(broken, [torch.ones(1)], None)


@pytest.mark.timeout(300)
def test_training_with_compiled_steps_reaches_the_same(tmp_path):
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        module = MAMLModule(MLP(hidden=[8]), 0.01, loss=F.mse_loss, compile=compile)
        run = trainer(tmp_path, max_steps=30, num_sanity_val_steps=0, precision="64-true", log_every_n_steps=10)
        run.fit(module, SinusoidDataModule(meta_batch_size=4, steps_per_epoch=30, val_tasks=10))
        losses.append(run.callback_metrics["val/query_loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_compiled_step_is_rounded_once(recorded_only):
    """Autocast's casts are in the record, which is run without it."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 200), torch.nn.Tanh(),
        torch.nn.Linear(200, 3),
    )  # fmt: skip

    def make(**kwargs):
        return MAMLModule(net, 0.1, 2, **kwargs)

    with torch.autocast("cpu", torch.bfloat16):
        module, _, found, expected = compiled_and_not(make, image_tasks(dtype=torch.float32))
    assert module._program.reason is None
    assert relative_error(found, expected) < 1e-5
    _, exact = meta_gradient(make(compile=False), image_tasks(dtype=torch.float32))
    assert relative_error(expected, exact) > 1e-3
