"""Worker processes that step environments: one for each core, with many environments each."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.errors import ConfigurationError, DataError, one_line
from lightning_meta.rl.places import Failure, PlaceError, Places, Source, Stepped


class Workers:
    """Steps environments in worker processes; the interface is that of `Places`.

    A worker has a share of the places one after another, and gets one message for all of them at a step: with a message
    for each environment, they would wait for each other longer than they compute. Observations go through a pipe, which
    is a thousandth of the time that simulators need for them.

    Workers are started by the first `assign`, by a fork server or anew, since forking a process with threads can block
    for ever. They end with `close`, with the process that started them, however that ends, and after an error.

    Args:
        source: Has the environments; every worker gets a copy.
        count: How many processes.

    Raises:
        ConfigurationError: In `assign`, the source cannot be sent to another process.
        DataError: A worker ended by itself.
        PlaceError: An environment failed.
    """

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count = source, count
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        self.bounds: list[int] = []
        self._end: Any = None

    def assign(self, tasks: Sequence[Any]) -> None:
        """Have one place for each of `P` tasks."""
        if not self.processes:
            self._start()
        # Neighbours are of one task, and share what a worker knows about it.
        self.bounds = [len(tasks) * i // self.count for i in range(self.count + 1)]
        self._call("assign", [_pickled(list(part), "A task") for part in self._parts(tasks)])

    def reset(self, seeds: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Begin an episode in each place, from seeds `(P,)`; returns observations `(P, *observation)`."""
        return np.concatenate(self._call("reset", self._parts(seeds)))

    def step(self, actions: NDArray[Any]) -> Stepped:
        """Act where episodes go on, with actions `(P, ...)`."""
        results: list[Stepped] = self._call("step", self._parts(actions))
        observations, rewards, ended = (np.concatenate([part[i] for part in results]) for i in range(3))
        told = [part.success for part in results if part.success is not None]
        if not told:
            return Stepped(observations, rewards, ended, None)
        success = [np.zeros(len(part.ended), np.bool_) if part.success is None else part.success for part in results]
        return Stepped(observations, rewards, ended, np.concatenate(success))

    def close(self) -> None:
        """End the processes, in five seconds at the most."""
        if self._end is not None:
            self._end()
        self.connections, self.processes, self._end = [], [], None

    def _parts(self, whole: Any) -> list[Any]:
        return [whole[first:last] for first, last in zip(self.bounds[:-1], self.bounds[1:], strict=True)]

    def _start(self) -> None:
        payload = _pickled(self.source, "The environment")
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload([__name__])
        for _ in range(self.count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, payload), daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)
        self._end = weakref.finalize(self, _end, self.processes, self.connections)

    def _call(self, command: str, arguments: list[Any]) -> list[Any]:
        replies: list[Any] = []
        try:
            for connection, argument in zip(self.connections, arguments, strict=True):
                connection.send((command, argument))
            for connection in self.connections:
                replies.append(connection.recv())
        except (EOFError, OSError) as error:
            self._lost(len(replies), error)
        except BaseException:  # Ctrl-C between a question and its answer: later answers would be to other questions
            self.close()
            raise
        for reply, first in zip(replies, self.bounds, strict=False):
            if isinstance(reply, Failure):
                self.close()
                raise PlaceError(reply._replace(place=reply.place + first))
        return replies

    def _lost(self, worker: int, error: BaseException) -> NoReturn:
        process = self.processes[worker]
        process.join(1)
        code = process.exitcode
        self.close()
        raise DataError(
            f"A worker process of environments ended with exit code {code}. "
            + (
                f"Signal {-code} ended it: an environment crashed, or memory ran out."
                if code is not None and code < 0
                else "A script that starts workers must do so below `if __name__ == '__main__':`; see also the output "
                "above. num_workers=0 works in any script."
            )
        ) from error


def _pickled(value: Any, what: str) -> bytes:
    # Knows classes and functions of scripts, too; Gymnasium needs it, so it is there where environments are.
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        raise ConfigurationError(
            f"{what} cannot be sent to a worker process: {error}. Use num_workers=0, or make it of things that can be "
            "pickled."
        ) from error


def _end(processes: list[Any], connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()  # which the workers take for the end
    for process in processes:
        process.join(4 if process is processes[0] else 0.2)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection, payload: bytes) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    places: Places | None = None
    while True:
        try:
            command, argument = connection.recv()
        except (EOFError, OSError):
            break
        try:
            if places is None:
                places = Places(pickle.loads(payload))
            argument = pickle.loads(argument) if command == "assign" else argument
            reply = getattr(places, command)(argument)
        except PlaceError as error:
            reply = error.failure
        except Exception as error:
            reply = Failure(0, one_line(error), traceback.format_exc())
        try:
            connection.send(reply)
        except OSError:
            break
    if places is not None:
        places.close()


def _end_with_parent() -> None:
    """End at once when the parent process has ended, even if it was killed and an environment is at work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)
