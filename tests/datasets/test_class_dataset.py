"""Labelled data held as tensors of all examples."""

from collections import UserDict

import pytest
import torch

from lightning_meta.datasets import ClassDataset, image_scale
from lightning_meta.errors import ArgumentTypeError, ConfigurationError


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


def test_a_nesting_of_tensors_is_read_example_by_example():
    inputs = UserDict(ids=torch.arange(6).view(3, 2), more=[torch.ones(3), (torch.zeros(3, 1),)])
    data = ClassDataset(inputs, [0, 1, 1])
    assert type(data.inputs) is dict
    assert data.scale is None
    example, target = data[1]
    assert target == 1
    assert example["ids"].tolist() == [2, 3]
    assert example["more"][0] == 1
    assert example["more"][1][0].tolist() == [0]


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ({"ids": torch.zeros(3, 2), "text": ["a", "b", "c"]}, ArgumentTypeError, r"inputs\['text'\]\[0\], a str"),
        ({}, ArgumentTypeError, "at least one tensor, got {}"),
        ([1, 2, 3], ArgumentTypeError, r"inputs\[0\], a int"),
        (
            {"ids": torch.zeros(3, 2), "length": torch.zeros(2)},
            ConfigurationError,
            "2 and 3 inputs but 3 targets. Every tensor",
        ),
        ({"ids": torch.zeros(2, 2)}, ConfigurationError, "2 inputs but 3 targets"),
    ],
)
def test_a_nesting_of_anything_else_is_refused(inputs, kind, message):
    with pytest.raises(kind, match=message):
        ClassDataset(inputs, [0, 1, 1])
