"""The inner loop as a pure function."""

import pytest
import torch

from lightning_meta.functional import adapt

CALLS = {"calls": torch.zeros(2)}


def quadratic(params, buffers, step):
    return params["w"].square().sum(1) / 2, {"calls": buffers["calls"] + 1}


def descend(grads, state, params, *, loss, step):
    return {"w": params["w"] - 0.5 * grads["w"]}, state


@pytest.mark.parametrize(("order", "jacobian"), [(2, 0.5**3), (1, 1.0)])
def test_each_step_halves_and_the_order_says_what_is_differentiated(order, jacobian):
    w = torch.tensor([[4.0], [8.0]], requires_grad=True)
    seen = []
    adapted, buffers, _, losses = adapt(
        quadratic,
        {"w": w},
        CALLS,
        (),
        descend,
        3,
        order=order,
        on_step=lambda i, p, b, _: seen.append((i, p["w"].tolist())),
    )
    assert adapted["w"].tolist() == [[0.5], [1.0]]
    assert buffers["calls"].tolist() == [3, 3]
    assert CALLS["calls"].tolist() == [0, 0]
    assert [loss.tolist() for loss in losses] == [[8.0, 32.0], [2.0, 8.0], [0.5, 2.0]]
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert seen[1][1] == [[2.0], [4.0]]
    (gradient,) = torch.autograd.grad(adapted["w"].sum(), w)
    assert gradient.tolist() == [[jacobian], [jacobian]]


def test_order_zero_keeps_no_graph():
    w = torch.tensor([[4.0]], requires_grad=True)
    adapted, *_ = adapt(quadratic, {"w": w}, CALLS, (), descend, 2, order=0)
    assert adapted["w"].is_leaf
    assert adapted["w"].item() == 1.0


def test_no_steps_return_the_initial_parameters():
    params = {"w": torch.ones(1, 1)}
    assert adapt(quadratic, params, CALLS, (), descend, 0) == (params, CALLS, (), [])
