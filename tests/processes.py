"""Runs a function in processes of its own, alone or as the ranks of a distributed run as `torchrun` starts them."""

import multiprocessing
import os
import socket
import sys
import traceback
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lightning_meta", "torchvision", "tests.processes"])


def start(function, *args, world=1, log: Path):
    """Start `function(*args)` in `world` processes, whose output goes to `log` with the rank added to its name."""
    port = free_port()
    started = []
    for rank in range(world):
        environment = {"OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= {
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "ROLE_RANK": str(rank),
                "TORCHELASTIC_RUN_ID": "test",
            }  # fmt: skip
        process = CONTEXT.Process(target=_run, args=(f"{log}.{rank}", environment, function, args))
        process.start()
        started.append(process)
    return started


def run(function, *args, world=1, log: Path, timeout=120):
    """The same, to the end.

    Raises:
        RuntimeError: A process failed; the message has its output.
    """
    processes = start(function, *args, world=world, log=log)
    try:
        for process in processes:
            process.join(timeout)
    finally:
        for process in processes:
            process.kill()
    failed = [rank for rank, process in enumerate(processes) if process.exitcode != 0]
    if failed:
        outputs = "\n".join(Path(f"{log}.{rank}").read_text()[-3000:] for rank in failed)
        raise RuntimeError(f"Ranks {failed} of {world} ended with {[p.exitcode for p in processes]}:\n{outputs}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run(log, environment, function, args):
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    torch.set_num_threads(1)
    try:
        function(*args)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
