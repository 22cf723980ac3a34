"""Time outer steps of MAML by every way of this package, by hand and by other libraries, in turns within one run.

Every contender is a process of its own; they take turns, so that what else the machine does meets all of them alike.
A time is the median over turns. Afterwards each computes the meta-gradient in float64, which is compared with the
hand-written loop's: a contender that computes something else is marked, and counts for nothing.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from step_cases import CASES
from ways import PEERS, WAYS

ORDERS = ("second", "first")
TOLERANCE = 1e-10
APART = ("compiled", "bf16", "floor")
COLUMNS = ("auto_to_best", "auto_to_floor", "speedup")


class Contender:
    """One way in a process of its own."""

    def __init__(self, case: str, way: str, order: str, device: str, threads: int) -> None:
        self.way = way
        self.times: list[float] = []
        self.memory: float | None = None
        self.error: float | None = None
        self.first: float | None = None
        self.failed: str | None = None
        program = str(Path(__file__).with_name("ways.py"))
        self._process = subprocess.Popen(
            [sys.executable, program, case, way, order, device, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        self.runs = True

    def start(self) -> None:
        """Let it make its first steps: one after another, since threads of many at once wait for each other."""
        started = self.ask("start")
        self.runs = started is not None
        if started is not None:
            self.first = started["first"]

    def _answer(self) -> Any:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            self.failed = (self._process.stderr.read().strip().splitlines() or ["it ended without a word"])[-1]  # type: ignore[union-attr]
            self.runs = False
            return None
        return json.loads(line)

    def ask(self, command: str) -> Any:
        """Send a command and wait for the answer."""
        self._process.stdin.write(f"{command}\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    @property
    def median(self) -> float | None:
        """Milliseconds an outer step."""
        return 1e3 * statistics.median(self.times) if self.times else None

    @property
    def is_right(self) -> bool:
        """Whether its meta-gradient is that of the hand-written loop."""
        return self.error is not None and self.error < TOLERANCE


def measure(case: str, order: str, arguments: argparse.Namespace) -> list[Contender]:
    """Time the contenders of one case in turns, and compare their gradients."""
    contenders = [Contender(case, way, order, arguments.device, arguments.threads) for way in arguments.ways]
    for contender in contenders:
        contender.start()
    running = [c for c in contenders if c.runs]
    for turn in range(arguments.turns):
        # In another order each time, so that nobody always follows the same neighbour.
        for contender in running[turn % len(running) :] + running[: turn % len(running)]:
            time.sleep(0.05)  # for the threads of the one before to fall asleep
            contender.times.append(contender.ask(f"turn {arguments.seconds}"))
    for contender in running:
        contender.memory = contender.ask("memory")
    with tempfile.TemporaryDirectory() as folder:
        gradients = {}
        for contender in (c for c in running if c.way != "floor"):
            contender.ask(f"gradient {folder}/{running.index(contender)}")
            if contender.runs:
                gradients[contender.way] = torch.load(f"{folder}/{running.index(contender)}")
    expected = gradients.get("hand loop")
    for contender in running:
        if expected is not None and contender.way in gradients:
            contender.error = ((gradients[contender.way] - expected).norm() / expected.norm()).item()
    for contender in contenders:
        contender.close()
    return contenders


def row(contenders: list[Contender]) -> list[str]:
    """What the table says of a case."""
    cells = []
    for c in contenders:
        if c.median is None:
            cells.append("-" if c.failed is None else "failed")
        else:
            wrong = "" if c.error is None or c.is_right else " (wrong)"
            cells.append(f"{c.median:.3g}{wrong}" if c.median < 100 else f"{c.median:.0f}{wrong}")
    return cells


def ratios(contenders: list[Contender]) -> dict[str, float]:
    """How `auto` compares: with the best of all that compute the gradient, and with the hand loop and `higher`.

    Compiling and bfloat16 are other switches than the way of running tasks, so they are not among what `auto` is
    compared with.
    """
    times = {c.way: c.median for c in contenders if c.median is not None and (c.is_right or c.error is None)}
    if "auto" not in times:
        return {}
    found = {"auto_to_best": min(t for way, t in times.items() if way not in APART) / times["auto"]}
    if "floor" in times:
        found["auto_to_floor"] = times["auto"] / times["floor"]
    reference = [times[way] for way in ("hand loop", "higher") if way in times]
    if reference:
        found["speedup"] = min(reference) / times["auto"]
    return found


def main() -> None:
    """Print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS),
        default=[way for way in WAYS if way not in ("compiled", "bf16", "learn2learn")],
        help="all but 'compiled', which takes a minute or two for each case to start, 'bf16', and 'learn2learn', which "
        "is not on the list of what ./scripts/benchmark installs",
    )  # fmt: skip
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="about how long a turn is, at least one step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=Path("benchmark.json"))
    arguments = parser.parse_args()
    cases = [name for name in CASES if arguments.cases.lower() in name.lower()]
    if not cases:
        parser.error(f"--cases {arguments.cases!r} is in no name of a case: {'; '.join(CASES)}.")
    print(
        f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads, {platform.machine()}; "
        f"milliseconds an outer step, median of {arguments.turns} turns"
    )
    print("| case | order |", " | ".join(arguments.ways), "| auto / best | auto / floor | speedup |")
    print("|---" * (len(arguments.ways) + 2 + len(COLUMNS)) + "|")
    results: list[dict[str, Any]] = []
    memory = [f"| case | order | {' | '.join(arguments.ways)} |", "|---" * (len(arguments.ways) + 2) + "|"]
    for order in arguments.orders:
        for case in cases:
            contenders = measure(case, order, arguments)
            found = ratios(contenders)
            shown = [f"{found[key]:.2f}" if key in found else "-" for key in COLUMNS]
            print(f"| {case} | {order} |", " | ".join(row(contenders) + shown), "|", flush=True)
            cells = ["-" if c.memory is None else f"{c.memory:.0f}" for c in contenders]
            memory.append(f"| {case} | {order} | {' | '.join(cells)} |")
            for c in contenders:
                if c.failed is not None:
                    print(f"  {c.way} failed: {c.failed}", flush=True)
                results.append(
                    {"case": case, "order": order, "way": c.way, "milliseconds": c.median, "memory_mib": c.memory,
                     "gradient_error": c.error, "first_step_seconds": c.first, "failed": c.failed}
                )  # fmt: skip
    arguments.json.write_text(json.dumps({"torch": torch.__version__, "device": arguments.device,
                                          "threads": arguments.threads, "results": results}, indent=1))  # fmt: skip
    print(
        "speedup: of auto, against the better of hand loop and higher. wrong: another meta-gradient than the hand "
        f"loop's. -: there is none. Peers: {', '.join(PEERS)}."
    )
    print("\nMemory, MiB more than before the first step at the peak\n")
    print("\n".join(memory))


if __name__ == "__main__":
    main()
