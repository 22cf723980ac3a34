"""Prototypes of many tasks, with padding."""

import torch

from lightning_meta.functional.prototypes import prototypes


def test_padding_and_absent_classes_have_no_effect_and_no_nan():
    features = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 2, 2, 2]])
    mask = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    found = prototypes(features, targets, 4, mask)
    torch.testing.assert_close(found[0, 1], features[0, 1:3].mean(0))
    torch.testing.assert_close(found[0, 0], features[0, 0])
    assert found[:, 2:].abs().max() == 0
    found.square().sum().backward()
    assert torch.isfinite(features.grad).all()
    assert features.grad[~mask].abs().max() == 0
    assert features.grad[mask].abs().min() > 0
