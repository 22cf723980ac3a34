"""Glyphs drawn from a seed."""

import torch

from lightning_meta.datasets.glyphs import EXAMPLES_PER_CLASS, draw_glyphs, glyphs


def test_a_class_depends_on_seed_and_number_alone():
    images = draw_glyphs(range(70))
    assert images.shape == (70, EXAMPLES_PER_CLASS, 1, 28, 28)
    assert images.dtype == torch.uint8
    torch.testing.assert_close(draw_glyphs([66, 3])[1], images[3], rtol=0, atol=1)
    assert not torch.equal(draw_glyphs([3], seed=1)[0], images[3])


def test_drawings_are_ink_on_paper_with_soft_edges():
    images = draw_glyphs(range(50)).float() / 255
    ink = images.mean((2, 3, 4))
    assert ink.min() > 0.01
    assert ink.max() < 0.5
    assert 0.05 < ((images > 0.1) & (images < 0.9)).float().mean() / (images > 0.1).float().mean() < 0.9


def test_drawings_of_a_class_differ_but_are_alike():
    images = draw_glyphs(range(100)).float().flatten(2)
    assert len(torch.unique(images.flatten(0, 1), dim=0)) == 100 * EXAMPLES_PER_CLASS
    means = images[:, 10:].mean(1)
    nearest = torch.cdist(images[:, :10].flatten(0, 1), means).argmin(1)
    right = (nearest == torch.arange(100).repeat_interleave(10)).float().mean()
    assert 0.3 < right < 0.95  # far above 1 %, and not trivial


def test_the_data_set_names_its_classes():
    data = glyphs([4, 9])
    assert data.classes == ["glyph-0-4", "glyph-0-9"]
    assert data.targets.tolist() == [0] * EXAMPLES_PER_CLASS + [1] * EXAMPLES_PER_CLASS
