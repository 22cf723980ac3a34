"""Lightning's average of the meta-parameters over outer steps: what is validated, kept and resumed."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from lightning_meta import MLP, MAMLModule, RunCheckpoint, SinusoidDataModule

DECAY = 0.8


class Watch(pl.Callback):
    """Keeps the parameters after each outer step, and those that are validated."""

    def __init__(self):
        self.after, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(flat(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append(flat(pl_module))


def flat(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def of_state(state):
    return torch.cat([tensor.flatten() for name, tensor in state.items()])


def train(folder, max_steps=-1, resume=False, network=None, **options):
    torch.manual_seed(0)
    watch = Watch()
    callbacks = [EMAWeightAveraging(decay=DECAY), RunCheckpoint(str(folder), monitor="val/query_loss"), watch]
    trainer = pl.Trainer(
        max_epochs=2, max_steps=max_steps, accelerator="cpu", callbacks=callbacks, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    module = MAMLModule(network or MLP(hidden=(8,)), inner_lr=0.01, loss=F.mse_loss, **options)
    data = SinusoidDataModule(meta_batch_size=2, steps_per_epoch=6, val_tasks=2)
    trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return module, watch


def test_averages_are_validated_kept_and_returned(tmp_path):
    module, watch = train(tmp_path)
    average, averages = watch.after[0], []
    for parameters in watch.after[1:]:
        average = DECAY * average + (1 - DECAY) * parameters
        averages.append(average)
    torch.testing.assert_close(watch.validated, [averages[4], averages[10]])
    torch.testing.assert_close(flat(module), averages[10])
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.testing.assert_close(of_state(last["state_dict"]), averages[10])
    assert torch.equal(of_state(last["current_model_state"]), watch.after[11])
    loaded = MAMLModule.load_from_checkpoint(tmp_path / "last.ckpt", network=MLP(hidden=(8,)), loss=F.mse_loss)
    assert torch.equal(flat(loaded), of_state(last["state_dict"]))


def test_a_training_that_stops_goes_on_with_its_average(tmp_path):
    whole, _ = train(tmp_path / "whole")
    for stop in (4, 6, 9):
        train(tmp_path / str(stop), max_steps=stop)
        resumed, _ = train(tmp_path / str(stop), resume=True)
        assert torch.equal(flat(resumed), flat(whole)), stop


def test_frozen_weights_may_be_left_out(tmp_path):
    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(1, 300).requires_grad_(False), nn.Tanh(), nn.Linear(300, 1))

    whole, _ = train(tmp_path / "whole", network=network(), save_frozen=False)
    train(tmp_path / "part", max_steps=9, network=network(), save_frozen=False)
    last = torch.load(tmp_path / "part" / "last.ckpt", weights_only=True)
    trained = {"network.2.weight", "network.2.bias"}
    assert set(last["state_dict"]) == set(last["current_model_state"]) == trained
    resumed, _ = train(tmp_path / "part", resume=True, network=network(), save_frozen=False)
    assert torch.equal(flat(resumed), flat(whole))
