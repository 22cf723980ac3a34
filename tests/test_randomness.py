"""Counter-based randomness."""

import numpy as np

from lightning_meta.randomness import STREAMS, choose_without_replacement, uniforms


def test_a_row_depends_on_seed_stream_and_number_alone():
    reference = uniforms(7, "train", [0, 1, 2, 10**12], 9)
    for row, number in enumerate([0, 1, 2, 10**12]):
        assert (uniforms(7, "train", [number], 5)[0] == reference[row, :5]).all()
    others = [uniforms(7, stream, [1], 9)[0] for stream in STREAMS if stream != "train"]
    parts = [uniforms(7, "train", [1], 9, part)[0] for part in (1, 2)]
    for other in [*others, *parts, uniforms(8, "train", [1], 9)[0], reference[2]]:
        assert not (other == reference[1]).any()


def test_the_stream_is_fixed_for_good():
    """A change here would change every task that was ever drawn."""
    expected = np.random.Generator(np.random.Philox(key=[3, 1], counter=[0, 5, 0, 0])).random(4)
    assert (uniforms(3, "val", [5], 4)[0] == expected).all()


def test_uniform_numbers_are_uniform():
    values = uniforms(0, "test", range(2000), 10)
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # the 0.999 quantile for 19 degrees of freedom


def test_every_ordered_choice_is_equally_likely():
    chosen = choose_without_replacement(uniforms(0, "train", range(24000), 3), np.full(24000, 4))
    assert (np.sort(chosen, 1)[:, 1:] > np.sort(chosen, 1)[:, :-1]).all()
    assert chosen.min() == 0
    assert chosen.max() == 3
    _, counts = np.unique(chosen, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 49.7  # the 0.999 quantile for 23 degrees of freedom


def test_rows_of_different_sizes():
    sizes = np.array([[2, 5], [100, 3]])
    chosen = choose_without_replacement(uniforms(0, "train", range(2), 4).reshape(2, 2, 2), sizes)
    assert (chosen < sizes[..., None]).all()
    assert (chosen[..., 0] != chosen[..., 1]).all()
