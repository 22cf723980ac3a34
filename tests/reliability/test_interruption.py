"""SIGTERM, SIGINT, a full disk, a folder that cannot be written to: the run leaves in order and loses nothing."""

import os
import resource
import signal
import time

import pytest
import torch

from lightning_meta.errors import CheckpointError
from lightning_meta.modules.checkpoints import AtomicCheckpointIO
from tests.processes import run, start
from tests.reliability.test_kill import assert_same
from tests.reliability.training import final_state, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs that nothing interrupted, by their number of processes."""
    folders = {}
    for world in (1, 2):
        folders[world] = tmp_path_factory.mktemp("whole")
        run(train, "maml", folders[world], world, world=world, log=folders[world] / "log")
    return folders


def wait_for(condition, seconds=30):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.parametrize(
    ("world", "receiver", "number"),
    [(1, 0, signal.SIGTERM), (1, 0, signal.SIGINT), (2, 0, signal.SIGTERM), (2, 1, signal.SIGTERM)],
)
def test_a_signal_saves_and_leaves_with_a_message(world, receiver, number, whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    processes = start(train, "maml", folder, world, world=world, log=tmp_path / "log")
    wait_for((folder / "last.ckpt").exists)
    os.kill(processes[receiver].pid, number)
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [128 + number, 0][:world]
    step = final_state(folder)["global_step"]
    said = (tmp_path / "log.0").read_text()
    name = number.name if receiver == 0 else "SIGTERM"
    assert f"Interrupted ({name}) after outer step {step}, which is saved in {folder / 'last.ckpt'}" in said
    assert "Traceback" not in said
    assert (tmp_path / f"log.{receiver}").read_text().count("finishing this outer step") == int(receiver == 0)
    run(train, "maml", folder, world, world=world, log=tmp_path / "log")
    assert_same(final_state(folder), final_state(whole[world]))


def train_with_little_room(folder, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    train("maml", folder)


def test_a_full_disk_is_one_error_and_the_checkpoint_before_still_loads(tmp_path):
    """A limit on the size of files fails a write in its middle, as a full disk does."""
    folder = tmp_path / "run"
    folder.mkdir()
    (process,) = start(train, "maml", folder, log=tmp_path / "log")
    wait_for((folder / "best.ckpt").exists)
    process.kill()
    process.join()
    before = (folder / "last.ckpt").read_bytes()
    there = {path.name for path in folder.iterdir()}  # a killed process may leave what it was writing
    assert {"best.ckpt", "last.ckpt", "logs"} <= there
    with pytest.raises(
        RuntimeError, match=r"CheckpointError: The checkpoint .*(best|last)\.ckpt cannot be written: File too l"
    ):
        run(train_with_little_room, folder, len(before) - 1000, log=tmp_path / "log")
    assert (folder / "last.ckpt").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == there
    run(train, "maml", folder, log=tmp_path / "log")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_as_a_user(tmp_path):
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match=r"cannot be written: Permission denied\. There was none before"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, folder / "last.ckpt")


def test_a_place_where_there_can_be_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written: .*There was none before"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "file" / "last.ckpt")


def test_the_temporary_file_lies_beside_its_target(tmp_path, monkeypatch):
    moves = []
    monkeypatch.setattr(os, "replace", lambda source, target: moves.append((source, target)))
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
    ((source, target),) = moves
    assert os.path.dirname(source) == str(tmp_path)
    assert torch.load(source, weights_only=True) == {"state_dict": {}}
    assert target == tmp_path / "last.ckpt"
