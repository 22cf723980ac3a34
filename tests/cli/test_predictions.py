"""What `predict` saves can be read by anybody, whatever the sizes of the tasks."""

import pytest
import torch

from lightning_meta.cli.predictions import save_predictions


def tasks(*queries, ways=3):
    return [torch.randn(count, ways) for count in queries]


EQUAL = [torch.randn(2, 4, 3), torch.randn(1, 4, 3)]
UNEQUAL = [tasks(4, 2), tasks(3)]
CASES = {
    "equal tasks": (EQUAL, 1, torch.cat(EQUAL)),
    "equal tasks in lists": ([list(batch) for batch in EQUAL], 1, torch.cat(EQUAL)),
    "unequal tasks": (UNEQUAL, 1, UNEQUAL[0] + UNEQUAL[1]),
    "batches of different sizes": ([EQUAL[0], torch.ones(1, 5, 3)], 1, [*EQUAL[0], torch.ones(5, 3)]),
    "two loaders": ([EQUAL, UNEQUAL], 2, [torch.cat(EQUAL), UNEQUAL[0] + UNEQUAL[1]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_predictions_are_read_as_they_were(name, tmp_path):
    predictions, loaders, expected = CASES[name]
    save_predictions(predictions, loaders, tmp_path / "predictions.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.pt"]
    assert_equal(torch.load(tmp_path / "predictions.pt", weights_only=True), expected)


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)


def test_the_padding_of_a_batch_is_not_saved(tmp_path):
    batch = torch.randn(2, 100_000)
    save_predictions([[batch[0, :3], batch[1, :2]]], 1, tmp_path / "predictions.pt")
    assert (tmp_path / "predictions.pt").stat().st_size < 10_000
