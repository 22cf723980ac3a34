"""When RunCheckpoint saves, and that a training goes on from there as if it had not stopped."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F

from lightning_meta import MLP, MAMLModule, RunCheckpoint, SinusoidDataModule


class CountValidations(pl.Callback):
    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)


def train(folder, max_steps=-1, resume=False, monitor="val/query_loss", **kwargs):
    """Three epochs of ten steps, or the first `max_steps` of them. Returns after which steps it validated."""
    torch.manual_seed(0)
    count = CountValidations()
    checkpoint = RunCheckpoint(str(folder), monitor=monitor, every_n_steps=4)
    trainer = pl.Trainer(
        max_epochs=3, max_steps=max_steps, accelerator="cpu", callbacks=[checkpoint, count], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **kwargs,
    )  # fmt: skip
    module = MAMLModule(MLP(hidden=(8,)), inner_lr=0.01, loss=F.mse_loss)
    data = SinusoidDataModule(meta_batch_size=2, steps_per_epoch=10, val_tasks=2)
    trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return count.steps, module


SCHEDULES = {
    "every epoch": {},
    "twice an epoch": {"val_check_interval": 5},
    "every second epoch": {"check_val_every_n_epoch": 2},
    "across epochs": {"check_val_every_n_epoch": None, "val_check_interval": 7},
    "never": {"limit_val_batches": 0},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_training_that_stops_anywhere_goes_on_as_if_it_had_not(schedule, tmp_path):
    (tmp_path / "whole").mkdir()
    validated, whole = train(tmp_path / "whole", **SCHEDULES[schedule])
    for stop in (3, 4, 5, 7, 10, 13, 14, 20, 21):
        folder = tmp_path / str(stop)
        folder.mkdir()
        before, _ = train(folder, stop, **SCHEDULES[schedule])
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == stop
        after, resumed = train(folder, resume=True, **SCHEDULES[schedule])
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 30
        assert [step for step in before if step in validated] + after == validated, stop
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items()), stop


def test_saves_by_steps_and_keeps_the_best(tmp_path, monkeypatch):
    saved = []
    save = pl.Trainer.save_checkpoint

    def record(trainer, path, *args, **kwargs):
        saved.append((trainer.global_step, str(path).rsplit("/", 1)[1]))
        save(trainer, path, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", record)
    train(tmp_path)
    last = [step for step, name in saved if name == "last.ckpt"]
    assert last == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    assert {step for step, name in saved if name == "best.ckpt"} <= {10, 20, 30}
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    state = next(value for key, value in best["callbacks"].items() if "RunCheckpoint" in key)
    assert state["best_model_score"] == state["current_score"]


def test_without_validation_there_is_the_last_only(tmp_path):
    train(tmp_path, limit_val_batches=0)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_nothing_is_saved_in_a_trial_run(tmp_path):
    train(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="every_n_steps must be a whole number of at least 0, got -1"):
        RunCheckpoint(every_n_steps=-1)


def test_a_training_that_starts_afresh_keeps_the_checkpoints_of_the_one_before(tmp_path):
    train(tmp_path, 4)
    first = {name: (tmp_path / name).read_bytes() for name in ("best.ckpt", "last.ckpt") if (tmp_path / name).exists()}
    train(tmp_path, resume=True)  # it goes on: nothing is kept apart
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    whole = {name: (tmp_path / name).read_bytes() for name in ("best.ckpt", "last.ckpt")}
    assert whole["last.ckpt"] != first["last.ckpt"]
    for number in (1, 2):
        train(tmp_path, 10)
        kept = [(tmp_path / name.replace(".", f".{number}.", 1)) for name in whole]
        assert all(path.exists() for path in kept)
    assert [(tmp_path / name.replace(".", ".1.", 1)).read_bytes() for name in whole] == list(whole.values())
