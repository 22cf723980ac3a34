"""Omniglot-like characters drawn from a seed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_meta.datasets.class_dataset import ClassDataset
from lightning_meta.randomness import uniforms

SIZE = 28
EXAMPLES_PER_CLASS = 20  # as in Omniglot

_STROKES = 3  # at most; a class has two or three
_POINTS = 4  # control points of a cubic Bézier curve
_SAMPLES = 32  # points along a stroke
_COORDINATES = _STROKES * _POINTS * 2
_CLASS_NUMBERS = 1 + _COORDINATES
_EXAMPLE_NUMBERS = _COORDINATES + 6


def draw_glyphs(classes: Sequence[int], seed: int = 0) -> Tensor:
    """Draw every example of the given classes.

    A class is an arrangement of two or three smooth strokes, cubic Bézier curves in the unit square. An example moves
    their control points a little, rotates, slants, scales and shifts the whole, and draws it with a pen of some
    thickness, antialiased. Both depend on the seed and the class number alone.

    Args:
        classes: Class numbers, any non-negative integers.
        seed: Another seed, another alphabet.

    Returns:
        uint8 images `(len(classes), EXAMPLES_PER_CLASS, 1, 28, 28)`, ink 255 on 0.
    """
    size = _CLASS_NUMBERS + EXAMPLES_PER_CLASS * _EXAMPLE_NUMBERS
    chunks = [classes[start : start + 64] for start in range(0, len(classes), 64)]
    return torch.cat([_draw(torch.from_numpy(uniforms(seed, "glyphs", chunk, size)).float()) for chunk in chunks])


def _draw(random: Tensor) -> Tensor:
    """Images `(classes, EXAMPLES_PER_CLASS, 1, SIZE, SIZE)` from random numbers `(classes, ...)`."""
    count = len(random)
    of_class = random[:, :_CLASS_NUMBERS]
    of_example = random[:, _CLASS_NUMBERS:].view(count, EXAMPLES_PER_CLASS, _EXAMPLE_NUMBERS)
    strokes = (of_class[:, 1:] * 1.7 - 0.85).view(count, 1, _STROKES, _POINTS, 2)
    jitter = (of_example[..., :_COORDINATES] - 0.5).view(count, EXAMPLES_PER_CLASS, _STROKES, _POINTS, 2)
    points = strokes + 0.3 * jitter

    angle, slant, scale, shift_x, shift_y, pen = (2 * of_example[..., _COORDINATES:] - 1).unbind(-1)
    angle, scale = angle * math.radians(15), 0.95 + 0.15 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([cos, 0.25 * slant * cos - sin, sin, 0.25 * slant * sin + cos], -1).view(count, -1, 1, 2, 2)
    shift = torch.stack([shift_x, shift_y], -1)[:, :, None, None] * 0.12
    points = points @ matrix.transpose(-1, -2) + shift

    t = torch.linspace(0, 1, _SAMPLES)
    bernstein = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], -1)
    curves = (bernstein @ points + 1) * (SIZE / 2)  # (classes, examples, strokes, samples, 2) in pixels
    two_strokes = of_class[:, 0] < 0.4
    curves[two_strokes, :, 2] = curves[two_strokes, :, 1]

    centres = torch.stack(torch.meshgrid(*[torch.arange(SIZE) + 0.5] * 2, indexing="xy"), -1).view(1, -1, 2)
    curves = curves.reshape(count * EXAMPLES_PER_CLASS, _STROKES * _SAMPLES, 2)
    distance = torch.cdist(centres.expand(len(curves), -1, -1), curves).amin(-1)
    ink = (0.9 + 0.3 * pen.reshape(-1, 1) + 0.5 - distance).clamp(0, 1)
    return (ink * 255).round().to(torch.uint8).view(count, EXAMPLES_PER_CLASS, 1, SIZE, SIZE)


def glyphs(classes: Sequence[int], seed: int = 0) -> ClassDataset:
    """A data set of glyphs: `EXAMPLES_PER_CLASS` drawings of each class.

    Args:
        classes: Class numbers, any non-negative integers.
        seed: Another seed, another alphabet.

    Example:
        >>> data = glyphs(range(10))
        >>> len(data), data[0][0].shape, data.classes[3]
        (200, torch.Size([1, 28, 28]), 'glyph-0-3')
    """
    images = draw_glyphs(classes, seed).flatten(0, 1)
    targets = torch.arange(len(classes)).repeat_interleave(EXAMPLES_PER_CLASS)
    return ClassDataset(images, targets, [f"glyph-{seed}-{number}" for number in classes])
