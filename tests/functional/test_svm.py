"""The support vector machine of several classes, against other solvers and its own conditions of optimality."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.svm import LinearSVC

from lightning_meta.errors import ConfigurationError
from lightning_meta.functional.svm import svm_weights


def task(seed=0, n_way=5, k_shot=5, d=12, distance=1.0, scale=1.0):
    """Features `(1, n, d)` of one task, in float64, and targets `(1, n)`."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n_way).repeat(k_shot)
    centres = distance * torch.randn(n_way, d, generator=generator, dtype=torch.float64)
    features = centres[targets] + torch.randn(len(targets), d, generator=generator, dtype=torch.float64)
    return scale * features.unsqueeze(0), targets.unsqueeze(0)


def of_scikit_learn(features, targets, C):
    machine = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=C, tol=1e-10, max_iter=10**6)
    return torch.from_numpy(machine.fit(features[0].numpy(), targets[0].numpy()).coef_)


def violations(weights, features, targets):
    """How far each example is from its margin against each class, `(n, N)`; 0 against its own."""
    scores = features @ weights.mT
    return scores - scores.gather(1, targets.unsqueeze(1)) + 1 - F.one_hot(targets, len(weights))


@pytest.mark.parametrize("C", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("distance", [0.0, 3.0], ids=["overlapping", "separable"])
@pytest.mark.parametrize(("k_shot", "d"), [(1, 12), (5, 12), (5, 100)])
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_are_those_of_scikit_learn(seed, k_shot, d, distance, C):
    """Its problem has the same cost C of each example's largest violation, and the same factor 1/2 of the norm."""
    features, targets = task(seed, k_shot=k_shot, d=d, distance=distance)
    weights = svm_weights(features, targets, 5, C)[0]
    torch.testing.assert_close(weights, of_scikit_learn(features, targets, C), rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_of_features_does_not_matter(scale):
    features, targets = task(distance=0.3)
    expected = svm_weights(features, targets, 5, C=0.1)
    scaled = svm_weights(features * scale, targets, 5, C=0.1 / scale**2) * scale
    torch.testing.assert_close(scaled, expected, rtol=1e-10, atol=1e-12)


def test_repeated_examples_have_the_weights_of_scikit_learn():
    """Their dual variables are not unique, but the weights are."""
    features, targets = task(k_shot=2)
    features, targets = features.repeat(1, 3, 1), targets.repeat(1, 3)
    weights = svm_weights(features, targets, 5, C=0.1)[0]
    torch.testing.assert_close(weights, of_scikit_learn(features, targets, 0.1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("C", [0.1, 2.0])
def test_weights_solve_the_dual_of_the_paper(C):
    features, targets = task(n_way=3, k_shot=2, d=2)
    x, own = features[0].numpy(), F.one_hot(targets[0], 3).double().numpy()

    def dual(alpha):
        alpha = alpha.reshape(own.shape)
        return 0.5 * ((alpha.T @ x) ** 2).sum() - (alpha * own).sum()

    def slope(alpha):
        return (x @ x.T @ alpha.reshape(own.shape) - own).ravel()

    bounds = [(None, C * o) for o in own.ravel()]
    sums = {
        "type": "eq",
        "fun": lambda alpha: alpha.reshape(own.shape).sum(1),
        "jac": lambda _: np.kron(np.eye(len(own)), np.ones(3)),
    }
    options = {"ftol": 1e-15, "maxiter": 1000}
    found = minimize(dual, np.zeros(own.size), jac=slope, bounds=bounds, constraints=sums, options=options)
    expected = torch.from_numpy(found.x.reshape(own.shape).T @ x)
    torch.testing.assert_close(svm_weights(features, targets, 3, C)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("C", [0.01, 0.1, 10.0])
def test_conditions_of_optimality(C):
    """With independent examples the weights tell the dual variables."""
    (features,), (targets,) = task(d=40)
    weights = svm_weights(features.unsqueeze(0), targets.unsqueeze(0), 5, C)[0]
    alpha = torch.linalg.lstsq(features.T, weights.T).solution  # (n, N)
    torch.testing.assert_close(alpha.T @ features, weights, rtol=0, atol=1e-12)
    own = F.one_hot(targets, 5).double()
    torch.testing.assert_close(alpha.sum(1), torch.zeros(25, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (alpha <= C * own + 1e-12).all()
    below = violations(weights, features, targets)
    slack = below.amax(1, keepdim=True)
    counted = (alpha < C * own - 1e-8) & (alpha != 0)
    assert counted.any()
    # An alpha below its bound is of the class that comes closest; where that is the own one, nothing is lacking.
    torch.testing.assert_close(below[counted], slack.expand_as(below)[counted], rtol=0, atol=1e-9)
    # Primal and dual have the same value.
    primal = 0.5 * weights.square().sum() + C * slack.sum()
    dual = (alpha * own).sum() - 0.5 * weights.square().sum()
    assert primal.item() == pytest.approx(dual.item(), rel=1e-10)


@pytest.mark.parametrize("C", [0.05, 0.5, 10.0])
def test_first_and_second_derivatives(C):
    features, targets = task(n_way=3, k_shot=2, d=4, distance=0.5)
    more, others = task(seed=1, n_way=3, k_shot=2, d=4, distance=0.5)
    features, targets = torch.cat([features, more]).requires_grad_(), torch.cat([targets, others])
    mask = torch.tensor([[True] * 6, [True] * 5 + [False]])

    def weights(features):
        return svm_weights(features, targets, 3, C, mask)

    assert torch.autograd.gradcheck(weights, features, atol=1e-7, rtol=1e-5)
    assert torch.autograd.gradgradcheck(weights, features, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_padding_has_no_effect():
    features, targets = task()
    padded = torch.cat([features, torch.full((1, 4, 12), float("nan"), dtype=torch.float64)], 1).requires_grad_()
    numbers = torch.cat([targets, torch.tensor([[0, 4, -100, 99]])], 1)
    mask = (torch.arange(29) < 25).unsqueeze(0)
    features.requires_grad_()
    expected = svm_weights(features, targets, 5)
    weights = svm_weights(padded, numbers, 5, mask=mask)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-9)
    (wanted,) = torch.autograd.grad(expected.sin().sum(), features)
    (found,) = torch.autograd.grad(weights.sin().sum(), padded)
    torch.testing.assert_close(found[:, :25], wanted, rtol=0, atol=1e-9)
    assert (found[:, 25:] == 0).all()


def test_absent_classes_have_no_weight():
    features, targets = task(n_way=3)
    expected = svm_weights(features, targets, 3)
    numbers = torch.tensor([0, 2, 5])[targets]
    weights = svm_weights(features, numbers, 6)
    torch.testing.assert_close(weights[:, [0, 2, 5]], expected, rtol=0, atol=1e-9)
    assert (weights[:, [1, 3, 4]] == 0).all()
    hidden = torch.cat([numbers, torch.tensor([[1]])], 1)
    mask = (torch.arange(16) < 15).unsqueeze(0)
    assert (svm_weights(F.pad(features, (0, 0, 0, 1)), hidden, 6, mask=mask)[:, 1] == 0).all()


def test_a_batch_is_its_tasks():
    """Of which some take more iterations than others, and one is not finite."""
    parts = [task(seed, distance=0.3 * seed, scale=1 + seed) for seed in range(4)]
    parts[2][0][0, 0, 0] = float("nan")
    features, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    together = svm_weights(features, targets, 5)
    alone = torch.cat([svm_weights(*part, 5) for part in parts])
    assert together.isfinite().all((1, 2)).tolist() == [True, True, False, True]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("d", [12, 1600])
def test_single_precision_is_close_to_double(d):
    features, targets = task(d=d)
    results = {}
    for dtype in (torch.float32, torch.float64):
        x = features.float().to(dtype).requires_grad_()
        weights = svm_weights(x, targets, 5)
        assert weights.dtype == dtype
        results[dtype] = weights.double(), torch.autograd.grad(weights.sin().sum(), x)[0].double()
    torch.testing.assert_close(results[torch.float32], results[torch.float64], rtol=1e-5, atol=1e-6)


def test_autocast_rounds_nothing():
    features, targets = task()
    features = features.bfloat16()
    expected = svm_weights(features.float(), targets, 5)
    with torch.autocast("cpu", torch.bfloat16):
        weights = svm_weights(features, targets, 5)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, expected)


@pytest.mark.parametrize("C", [1e-3, 0.1, 1e3])
@pytest.mark.parametrize("kind", ["zero", "equal", "repeated", "one_class", "nothing", "one_dimension"])
def test_degenerate_tasks_have_finite_weights_and_derivatives(kind, C):
    features, targets = task()
    mask = torch.ones_like(targets, dtype=torch.bool)
    if kind == "zero":
        features = torch.zeros_like(features)
    elif kind == "equal":
        features = features[:, :1].expand_as(features).clone()
    elif kind == "repeated":
        features = features[:, :4].repeat(1, 7, 1)[:, :25]
    elif kind == "one_class":
        targets = torch.zeros_like(targets)
    elif kind == "nothing":
        mask = torch.zeros_like(mask)
    else:
        features = features * (torch.arange(12) == 0)
    features.requires_grad_()
    weights = svm_weights(features, targets, 5, C, mask)
    (first,) = torch.autograd.grad(weights.sin().sum(), features, create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), features)
    assert all(tensor.isfinite().all() for tensor in (weights, first, second))
    if kind in ("zero", "equal", "one_class", "nothing"):  # where no weights are better than none
        assert weights.abs().max() < 1e-8


@pytest.mark.parametrize("C", [0.0, -1.0, float("inf"), float("nan")])
def test_a_cost_that_is_not_positive_is_refused(C):
    with pytest.raises(ConfigurationError, match="positive"):
        svm_weights(*task(), 5, C)


def test_what_is_not_a_batch_of_problems_is_refused():
    features, targets = task()
    with pytest.raises(ConfigurationError, match="0 to 3"):
        svm_weights(features, targets, 4)
    with pytest.raises(ConfigurationError, match=r"\(1, 24\)"):
        svm_weights(features, targets[:, 1:], 5)
