"""Labelled data held as one tensor."""

import pytest
import torch

from lightning_meta.datasets import ClassDataset, image_scale
from lightning_meta.errors import ConfigurationError


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


@pytest.mark.parametrize(("scale", "dtype"), [(0, torch.uint8), (float("nan"), torch.uint8), (0.5, torch.float32)])
def test_a_scale_that_cannot_be_is_refused(scale, dtype):
    with pytest.raises(ConfigurationError, match=r"scale must be a positive number, for inputs of torch\.uint8, got"):
        ClassDataset(torch.zeros(2, 4, dtype=dtype), [0, 1], scale=scale)


@pytest.mark.parametrize(
    ("shape", "dtype", "scale"),
    [
        ((1, 5, 5), torch.uint8, 1 / 255),
        ((3, 5, 5), torch.uint8, 1 / 255),
        ((4, 5, 5), torch.uint8, None),
        ((5, 5), torch.uint8, None),
        ((3, 2, 5, 5), torch.uint8, None),
        ((3, 5, 5), torch.float32, None),
        ((1, 5, 5), torch.bool, None),
    ],
)
def test_images_are_bytes_with_one_or_three_channels(shape, dtype, scale):
    assert ClassDataset(torch.zeros(2, *shape, dtype=dtype), [0, 1]).scale == scale
    assert image_scale(torch.zeros(2, *shape, dtype=dtype)) == scale
