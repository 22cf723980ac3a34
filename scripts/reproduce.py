"""Run a row of a table of results again: train, test, and compare with what is recorded there.

    ./scripts/reproduce ROW [--resume] [--seeds N] [options of the command line, such as --data.root DATA]

ROW is the name in the first column, which is that of its configuration. Several rows may be tests of one training: then
options of the test follow the name there, and all of them are tested. The run is kept in runs/reproduce/ROW. With
--resume a training that did not come to its end goes on from its last checkpoint, exactly. With --seeds N it is trained
N times, from the seeds 0, 1 and so on (other initial parameters, the same tasks), and the spread between them is shown.
How long it was trained, validation included, is told and kept in its last checkpoint.
The exit status is 0 if the results are no further apart than their intervals say, 1 otherwise.
"""

import argparse
import re
import statistics
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import yaml
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_only

from lightning_meta.cli.main import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("results", "text", "reinforcement_learning", "meta_world")
ROOTS = {
    "omniglot": "omniglot-py/",
    "cifar_fs": "train/, val/ and test/ of CIFAR-FS",
    "banking77": "banking77.jsonl.gz",
    "clinc150": "clinc150.jsonl.gz",
}
LINE = re.compile(
    r"^\| `(?P<row>[\w/]+(?: --data\.test_\w+ \d+)*)` \|"
    r" (?P<mean>-?[\d.]+) ± (?P<ci95>[\d.]+) (?P<unit>%|mse|return|success) \|"
)
TIMER = "--trainer.callbacks+={class_path: lightning.pytorch.callbacks.Timer, init_args: {interval: step}}"
say = rank_zero_only(print)  # with several devices each process runs this script
METRICS = {"%": "query_accuracy", "mse": "query_loss", "return": "query_return", "success": "query_success"}


class Result(NamedTuple):
    """A mean over tasks and the half-width of its 95 % interval: an accuracy or a success in per cent, or as it is."""

    mean: float
    ci95: float
    unit: str

    def __str__(self) -> str:
        if self.unit in ("mse", "return"):
            return f"{self.mean:.3g} ± {self.ci95:.2g} {self.unit}"
        return f"{self.mean:.2f} ± {self.ci95:.2f} {self.unit}"


def runs_folder() -> Path:
    """Where runs are kept."""
    return ROOT / "runs" / "reproduce"


def recorded(document: str) -> dict[str, Result]:
    """The results in the tables, by row: the name of a configuration, with options of the test if it has any."""
    found = filter(None, map(LINE.match, document.splitlines()))
    return {m["row"]: Result(float(m["mean"]), float(m["ci95"]), m["unit"]) for m in found}


def measure(units: dict[str, str], options: list[str], *, seed: int = 0, resume: bool = False) -> dict[str, Result]:
    """Train once (unless the configuration says for no epoch), and test what each row says; rows with their units."""
    name = next(iter(units)).split()[0]
    path = ROOT / "configs" / f"{name}.yaml"
    folder = runs_folder() / (f"{name}_seed{seed}" if seed else name)
    config = ["--config", str(path), "--seed_everything", str(seed)]
    config += ["--trainer.default_root_dir", str(folder)]
    of_training: list[str] = []
    if yaml.safe_load(path.read_text())["trainer"]["max_epochs"] > 0:
        begun = resume and (folder / "checkpoints" / "last.ckpt").is_file()
        trainer = main(["fit", *config, *options, TIMER, *(["--ckpt_path", "last"] if begun else [])]).trainer
        timer = next(callback for callback in trainer.callbacks if isinstance(callback, Timer))
        say(f"{name}, seed {seed}: trained in {timer.time_elapsed('train') / 60:.1f} minutes")
        of_training = [TIMER, "--ckpt_path", "best"]
    results = {}
    for row in sorted(units, key=len, reverse=True):  # what the folder keeps is of the last one, as configured
        metrics = main(["test", *config, *row.split()[1:], *options, *of_training]).trainer.callback_metrics
        metric, scale = METRICS[units[row]], 100 if units[row] in ("%", "success") else 1
        mean, ci95 = (scale * float(metrics[f"test/{metric}{end}"]) for end in ("", "_ci95"))
        results[row] = Result(mean, ci95, units[row])
    return results


def between(results: list[Result]) -> str:
    """What several seeds reached: each, the mean, and the standard deviation between them."""
    means = [result.mean for result in results]
    each = ", ".join(f"{mean:.4g}" for mean in means)
    mean, spread = statistics.mean(means), statistics.stdev(means)
    return f"seeds 0 to {len(means) - 1}: {each}; mean {mean:.4g}, ± {spread:.2g} between them"


def compare(row: str, old: Result, new: Result) -> bool:
    """Say how a new result compares with the recorded one, and whether they agree."""
    tolerance = (old.ci95**2 + new.ci95**2) ** 0.5
    agree = abs(old.mean - new.mean) <= tolerance
    verdict = "within" if agree else "NOT within"
    say(f"{row}: measured {new}, recorded {old}: {verdict} the interval of the difference, ±{tolerance:.2g}")
    return agree


def reproduce(arguments: list[str]) -> int:
    """Run one row, or the rows that are tests of one training, and say how they compare."""
    rows = recorded("".join((ROOT / "docs" / f"{name}.md").read_text() for name in DOCUMENTS))
    asked = {row: old for row, old in rows.items() if arguments and row.split()[0] == arguments[0]}
    if not asked:
        given = f"There is no row {arguments[0]!r}. " if arguments else "Which row? "
        named = ", ".join(f"docs/{name}.md" for name in DOCUMENTS)
        print(f"{given}The rows of {named} are:\n  " + "\n  ".join(rows), file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="reproduce", allow_abbrev=False)
    parser.add_argument("row")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    own, options = parser.parse_known_args(arguments)
    if own.seeds < 1 or any(option.startswith("--seed_everything") for option in options):
        print("Give --seeds N, at least 1, instead of --seed_everything.", file=sys.stderr)
        return 2
    needed = next((folder for data, folder in ROOTS.items() if f"/{data}" in own.row), None)
    if needed and not any(option.startswith("--data.root") for option in options):
        print(f"This row needs --data.root, the folder that holds {needed}.", file=sys.stderr)
        return 2
    units = {row: old.unit for row, old in asked.items()}
    measured = [measure(units, options, seed=seed, resume=own.resume) for seed in range(own.seeds)]
    for row in asked if own.seeds > 1 else ():
        say(f"{row}, {between([results[row] for results in measured])}")
    agreed = [compare(row, old, measured[0][row]) for row, old in asked.items()]
    return 0 if all(agreed) else 1


if __name__ == "__main__":
    # Of Lightning: the arguments are made here, not those of the process; and of its own use of torch.
    warnings.filterwarnings("ignore", message=r"LightningCLI's args parameter|.*isinstance\(treespec, LeafSpec\)")
    sys.exit(reproduce(sys.argv[1:]))
