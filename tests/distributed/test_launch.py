"""Every way of starting several processes ends in the same parameters as one process."""

import csv
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.processes import free_port

ROOT = Path(__file__).parents[2]
FRAGMENTS = sorted(path.name for path in (ROOT / "configs" / "trainer").iterdir())


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Arguments of a small training on the CPU, with a fragment; the run is the folder named after it."""
    folder = tmp_path_factory.mktemp("launch")

    def given(fragment, *more):
        fragments = [] if fragment is None else ["--config", str(ROOT / "configs" / "trainer" / fragment)]
        run = folder / str(fragment)
        return run, [
            "fit", "--config", str(ROOT / "configs" / "maml" / "sinusoid_5shot.yaml"), *fragments,
            "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.precision", "64-true",
            "--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(run),
            "--data.meta_batch_size", "4", "--data.steps_per_epoch", "4", "--data.val_tasks", "5",
            "--data.num_workers", "0", *more,
        ]  # fmt: skip

    return given


def launch(*commands, environment=(), timeout=150):
    """Run commands side by side; their outputs."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "SLURM"))}
    own |= {"OMP_NUM_THREADS": "1", **dict(environment)}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own, cwd=ROOT)
        for command in commands
    ]
    outputs = [process.communicate(timeout=timeout)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def parameters(run):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    return torch.cat([tensor.flatten() for tensor in state["state_dict"].values()])


@pytest.fixture(scope="module")
def alone(arguments):
    run, given = arguments(None)
    launch([sys.executable, "-m", "lightning_meta", *given])
    return parameters(run)


def test_lightnings_own_launcher(arguments, alone):
    run, given = arguments("one_machine.yaml", "--trainer.devices", "2")
    (output,) = launch([sys.executable, "-m", "lightning_meta", *given])
    assert "2 processes" in output
    torch.testing.assert_close(parameters(run), alone, rtol=0, atol=1e-10)


def test_two_processes_write_the_results_of_one(tmp_path):
    """Of every task and class, in the same order, on a number of tasks that two do not divide."""
    given = [
        "test", "--config", str(ROOT / "configs/maml/glyphs_5way_1shot.yaml"), "--trainer.accelerator", "cpu",
        "--trainer.precision", "64-true", "--trainer.enable_progress_bar", "false", "--data.test_tasks", "5",
        "--data.eval_batch_size", "2", "--data.test_k_shot", "[1, 2]", "--model.network.hidden", "4",
    ]  # fmt: skip
    two = ["--config", str(ROOT / "configs/trainer/one_machine.yaml"), "--trainer.devices", "2"]
    runs = {tmp_path / "one": [], tmp_path / "two": two}
    for run, more in runs.items():
        launch([sys.executable, "-m", "lightning_meta", *given, *more, "--trainer.default_root_dir", str(run)])
    one, two = (run / "results" / "untrained" for run in runs)
    for name in ("tasks.csv", "classes.csv"):
        tables = [list(csv.reader((folder / name).open())) for folder in (one, two)]
        assert len(tables[0]) == 1 + (10 if name == "tasks.csv" else 50)
        for row, other in zip(*tables, strict=True):
            assert row[:3] == other[:3]
            if row[0] != "row":
                assert [float(value) for value in row[3:]] == pytest.approx([float(value) for value in other[3:]])
    assert sorted((one / "confusion.csv").read_text()) == sorted((two / "confusion.csv").read_text())


def test_torchrun(arguments, alone):
    run, given = arguments("torchrun.yaml")
    (output,) = launch([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
                        str(free_port()), "-m", "lightning_meta", *given])  # fmt: skip
    assert "2 processes" in output
    torch.testing.assert_close(parameters(run), alone, rtol=0, atol=1e-10)


def test_torchrun_on_two_nodes(arguments, alone):
    """Two nodes of one process each, joined over loopback."""
    run, given = arguments("torchrun_nodes.yaml", "--trainer.devices", "1")
    port = str(free_port())
    outputs = launch(
        *(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node),
             "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port, "-m", "lightning_meta",
             *given]
            for node in range(2)
        )
    )  # fmt: skip
    assert "2 processes" in outputs[0]
    torch.testing.assert_close(parameters(run), alone, rtol=0, atol=1e-10)


def test_slurm(arguments, alone, tmp_path):
    """The batch script, with an `srun` that starts two tasks with SLURM's variables."""
    run, given = arguments("slurm.yaml", "--trainer.devices", "2", "--trainer.num_nodes", "1")
    (tmp_path / "srun").write_text(SRUN.format(port=free_port()))
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol.log\n')
    for command in ("srun", "scontrol"):
        (tmp_path / command).chmod(stat.S_IRWXU)
    (tmp_path / "lightning-meta").write_text(f'#!/bin/bash\nexec {sys.executable} -m lightning_meta "$@"\n')
    (tmp_path / "lightning-meta").chmod(stat.S_IRWXU)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "RUN_FOLDER": str(run)}
    script = ["bash", str(ROOT / "scripts" / "slurm.sbatch"), given[2]]
    options = given[given.index("--trainer.accelerator") :]
    (output,) = launch([*script, *options], environment=environment.items())
    assert "2 processes" in output
    torch.testing.assert_close(parameters(run), alone, rtol=0, atol=1e-10)

    # When its time is up it saves, queues itself again, and goes on from there.
    long = [*options, "--trainer.max_epochs", "500"]
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen([*script, *long], stdout=log, stderr=log, env={**os.environ, **environment}, cwd=ROOT)
        for _ in range(600):
            if "Epoch" in (tmp_path / "log").read_text() or torch_step(run) > 4:
                break
            time.sleep(0.1)
        subprocess.run(["pkill", "-TERM", "-f", f"lightning_meta.*{run}"], check=False)
        assert job.wait(60) == 128 + signal.SIGTERM, (tmp_path / "log").read_text()
    assert torch_step(run) > 4
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"


def torch_step(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


SRUN = """#!/bin/bash
# What SLURM's srun does: start the tasks, each with its variables, and end with the worst status of theirs.
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_JOB_NAME=job SLURM_NODEID=0 SLURM_JOB_NODELIST=127.0.0.1
export SLURM_STEP_NODELIST=127.0.0.1 MASTER_ADDR=127.0.0.1 MASTER_PORT={port}
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
other=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" &
first=$!
wait $first; a=$?
wait $other; b=$?
exit $((a > b ? a : b))
"""


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragments_set_the_trainer_only(name):
    fragment = yaml.safe_load((ROOT / "configs" / "trainer" / name).read_text())
    assert fragment.keys() == {"trainer"}
    assert fragment["trainer"]["strategy"]["class_path"] == "DDPStrategy"
