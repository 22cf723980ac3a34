"""Labelled data held as one tensor."""

import pytest
import torch

from lightning_meta.datasets import ClassDataset


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        ([0, 1], None, "3 inputs but 2 targets"),
        ([0.0, 1.0, 1.0], None, "one integer for each example"),
        ([[0], [1], [1]], None, "one integer for each example"),
        ([0, 1, 2], ["a", "b"], "Target 2 has no name"),
    ],
)
def test_what_does_not_fit_is_refused(targets, classes, message):
    with pytest.raises(ValueError, match=message):
        ClassDataset(torch.zeros(3, 2), targets, classes)
