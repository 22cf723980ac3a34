"""Whatever is asked of the command line, it ends in a run or in one clear error; a start that fails leaves nothing."""

import contextlib
import copy
import io
import logging
import math
import re
import signal
import tempfile
import traceback
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from lightning_meta.cli.main import main
from lightning_meta.errors import LightningMetaError, one_line
from tests.cli.test_main import QUIET
from tests.reliability.bad_data import FLAWS, NETWORK_FLAWS

SECONDS = 60  # no example may take longer

BASE = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 2, "limit_test_batches": 2,
                "limit_predict_batches": 2, "log_every_n_steps": 1},
    "model": {
        "class_path": "MAMLModule",
        "init_args": {
            "network": {"class_path": "Conv4", "init_args": {"hidden": 4}},
            "inner_lr": 0.1,
            "inner_steps": 1,
            "optimizer": {"class_path": "Adam", "init_args": {"lr": 0.001}},
        },
    },
    "data": {
        "class_path": "GlyphsDataModule",
        "init_args": {"train_classes": 6, "val_classes": 6, "test_classes": 6, "n_way": 5, "k_shot": 1, "n_query": 2,
                      "meta_batch_size": 2, "steps_per_epoch": 2, "val_tasks": 3, "test_tasks": 3},
    },
}  # fmt: skip

# What Python says of a value that nobody has checked.
RAW = re.compile("not supported between|is not callable|has no attribute|not subscriptable|not iterable|unhashable")

numbers = st.one_of(st.integers(-3, 40), st.sampled_from([0.0, -0.5, 0.5, 1e30, math.inf, math.nan]))
words = st.sampled_from(["", "abc", "null", "NaN", "-1", "1e400", "a: b", "[1", "五", "torch.nn.Linear", "os.system"])
anything = st.one_of(
    st.none(), st.booleans(), numbers, words, st.just([]), st.just([1, "x"]), st.just({}), st.just({"class_path": "X"})
)

# Mostly of the right type, but perhaps out of range.
counts = st.one_of(st.integers(-3, 40), st.integers(-1, 8), st.sampled_from([0, -1, 2**40]), anything)
sizes = st.one_of(st.integers(-3, 12), st.integers(-1, 8), st.sampled_from([0, -1, 7]), anything)
rates = st.one_of(st.floats(-1, 2), st.sampled_from([0.0, -0.1, 1e30, -math.inf, math.inf, math.nan]), anything)


def one_of(*values):
    return st.one_of(st.sampled_from(values), anything)


def class_of(*names):
    """A class by its bare name, with good or bad arguments."""
    arguments = st.dictionaries(st.sampled_from(["lr", "hidden", "T_max", "bogus", "n_way"]), anything, max_size=2)
    return st.builds(lambda name, given: {"class_path": name, "init_args": given}, st.sampled_from(names), arguments)


MODULES = ("MAMLModule", "ReptileModule", "MetaLSTMModule", "IMAMLModule", "ProtoNetModule", "ProtoMAMLModule",
           "GradientBasedModule", "MetaModule", "LightningModule", "Conv4", "Bogus")  # fmt: skip
MUTATIONS = {
    "seed_everything": counts,
    "ckpt_path": st.sampled_from(["best", "last", "nowhere.ckpt", "/", ""]),
    "trainer.max_epochs": st.sampled_from([0, -3, 1.5, "many", [], math.nan]),
    "trainer.precision": one_of("bf16-mixed", "64-true", "16-true", "16-mixed", "8-bit"),
    "trainer.devices": st.sampled_from([0, -1, -7, "many", 1.5, [], "", "auto"]),
    "trainer.accelerator": one_of("cpu", "gpu", "tpu", "abacus"),
    "trainer.strategy": st.sampled_from(["bogus", "fsdp", "deepspeed", 3, [], "auto"]),
    "trainer.log_every_n_steps": counts,
    "trainer.val_check_interval": rates,
    "trainer.check_val_every_n_epoch": counts,
    "trainer.num_sanity_val_steps": counts,
    "trainer.gradient_clip_val": anything,
    "trainer.accumulate_grad_batches": counts,
    "trainer.limit_train_batches": one_of(1),
    "trainer.limit_val_batches": rates,
    "trainer.logger": one_of(False, True),
    "trainer.callbacks": one_of({"class_path": "EarlyStopping", "init_args": {"monitor": "nothing"}}),
    "trainer.profiler": one_of("simple"),
    "trainer.sync_batchnorm": anything,
    "trainer.enable_checkpointing": anything,
    "trainer.bogus": anything,
    "model.class_path": one_of(*MODULES),
    "model.bogus": anything,
    "model.init_args.bogus": anything,
    "model.init_args.network": st.one_of(anything, class_of("Conv4", "MLP", "torch.nn.Linear", "Bogus")),
    "model.init_args.network.init_args.hidden": st.one_of(sizes, st.sampled_from([[8], 10**7])),
    "model.init_args.network.init_args.in_channels": sizes,
    "model.init_args.network.init_args.n_way": sizes,
    "model.init_args.network.init_args.norm": one_of("layer", "group", "none"),
    "model.init_args.network.init_args.downsample": one_of("pool"),
    "model.init_args.network.init_args.image_size": sizes,
    "model.init_args.network.init_args.bogus": anything,
    "model.init_args.inner_lr": rates,
    "model.init_args.inner_steps": st.one_of(st.integers(-2, 3), words, st.sampled_from([1.5, None, [], True])),
    "model.init_args.val_inner_steps": st.one_of(st.integers(-2, 3), words, st.sampled_from([1.5, None, [], True])),
    "model.init_args.first_order": anything,
    "model.init_args.adapt_only": one_of("head", "body", "nothing", ["head.*"]),
    "model.init_args.transductive": anything,
    "model.init_args.loss": one_of("torch.nn.functional.mse_loss", "torch.nn.functional.nope", "torch.nn.MSELoss"),
    "model.init_args.optimizer": st.one_of(anything, class_of("Adam", "SGD", "LBFGS", "Bogus")),
    "model.init_args.optimizer.init_args.lr": rates,
    "model.init_args.lr_scheduler": st.one_of(anything, class_of("CosineAnnealingLR", "StepLR", "Bogus")),
    "model.init_args.gradient_clip_val": rates,
    "model.init_args.task_parallel": st.one_of(one_of("auto", "vmap", "loop"), sizes),
    "model.init_args.on_nonfinite": one_of("raise", "skip"),
    "model.init_args.max_skipped_steps": counts,
    "model.init_args.inner_optimizer": st.one_of(anything, class_of("SGD", "Adam", "MetaSGD", "LSLR", "LSTMOptimizer")),
    "model.init_args.inner_optimizer_lr": rates,
    "data.class_path": one_of("GlyphsDataModule", "SinusoidDataModule", "OmniglotDataModule", "EpisodicDataModule"),
    "data.init_args.bogus": anything,
    "data.init_args.root": one_of("/nowhere"),
    "data.init_args.num_workers": st.sampled_from([0, -1, 1.5, "two", 10**6]),
    "checkpoint.filename": one_of("a/b"),
    "checkpoint.monitor": one_of("val/nothing", "train/query_loss"),
    "checkpoint.mode": one_of("max", "up"),
    "checkpoint.save_top_k": counts,
    "checkpoint.every_n_steps": counts,
    "checkpoint.bogus": anything,
    **{
        f"data.init_args.{name}": sizes
        for name in ("n_way", "k_shot", "n_query", "meta_batch_size", "steps_per_epoch", "val_tasks", "test_tasks",
                     "seed", "eval_batch_size", "train_classes", "val_classes", "glyphs_seed", "val_n_way",
                     "test_k_shot")
    },
}  # fmt: skip


def data_set(flaw, start):
    return {"class_path": "tests.reliability.bad_data.Images", "init_args": {"flaw": flaw, "start": start}}


# What each example starts from: a setting, a data set with a flaw, or a network with one.
KINDS = [*MUTATIONS, *(f"data: {flaw}" for flaw in FLAWS), *(f"network: {flaw}" for flaw in NETWORK_FLAWS)]


def with_data(config, draw, flaw):
    sets = {"train_dataset": data_set(flaw, 0), "val_dataset": data_set("none", 10)}
    if draw(st.booleans()):
        sets |= {"test_dataset": data_set(draw(st.sampled_from(FLAWS)), draw(st.sampled_from([0, 20])))}
    sizes = {key: config["data"]["init_args"][key] for key in ("n_way", "k_shot", "n_query", "meta_batch_size")}
    counts = {"steps_per_epoch": 2, "val_tasks": 2, "test_tasks": 2, "num_workers": draw(st.sampled_from([0, 0, 1]))}
    config["data"] = {"class_path": "EpisodicDataModule", "init_args": {**sets, **sizes, **counts}}


def with_network(config, draw, flaw):
    network = {"class_path": "tests.reliability.bad_data.Flawed", "init_args": {"flaw": flaw}}
    config["model"]["init_args"]["network"] = network
    config["model"]["class_path"] = draw(st.sampled_from(MODULES[:6]))
    for name in ("inner_lr", "inner_steps"):
        if config["model"]["class_path"] != "MAMLModule":
            del config["model"]["init_args"][name]


@st.composite
def configurations(draw, kind):
    """A command, a configuration, and the keys in which it differs from one that works."""
    config = copy.deepcopy(BASE)
    keys = []
    if kind.startswith("data:"):
        with_data(config, draw, kind.removeprefix("data: "))
    elif kind.startswith("network:"):
        with_network(config, draw, kind.removeprefix("network: "))
    else:
        keys.append(kind)
    more = draw(st.lists(st.sampled_from(sorted(MUTATIONS)), max_size=1))
    for key in keys + more:
        place = config
        *path, last = key.split(".")
        for name in path:
            if not isinstance(place.get(name), dict):
                place[name] = {}
            place = place[name]
        place[last] = draw(MUTATIONS[key])
    command = draw(st.sampled_from(["fit", "fit", "fit", "validate", "test", "predict"]))
    return command, config, [*keys, *more, *({"data": ["data"], "network": ["model"]}.get(kind.split(":")[0], []))]


class TooSlow(BaseException):
    """An example took too long."""


def too_slow(*_):
    raise TooSlow


def how(error, said, changed):
    """How the command line ended, after checking that it did so as promised."""
    if isinstance(error, SystemExit):
        assert error.code == 2, error.code
        last = said.strip().splitlines()[-1]
        assert last.startswith("error: "), last
        assert "--help" in last, last
        assert any(name in last for key in changed for name in key.split(".")), (last, changed)
        return f"parser: {last}"
    assert isinstance(error, LightningMetaError), "".join(traceback.format_exception(error))
    assert len(one_line(error)) > len(type(error).__name__) + 20, one_line(error)
    if "cannot be made from the" not in str(error):  # where torch's own words follow
        assert not RAW.search(str(error)), one_line(error)
    return f"error: {one_line(error)}"


def attempt(command, config, changed, folder):
    """Run it; returns how it ended."""
    root = folder / "run"
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True))
    arguments = [command, "--config", str(file), *QUIET[2:], "--trainer.default_root_dir", str(root)]
    said = io.StringIO()
    ended = "run"
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(arguments)
        except (SystemExit, Exception) as error:
            ended = how(error, said.getvalue(), changed)
    if ended != "run" and not (root / "config.yaml").exists():
        left = [str(path) for path in folder.rglob("*") if path != file]
        assert not left, (ended, left)
    return ended


@pytest.mark.timeout(3000)
def test_fuzz(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = request.config.getoption("fuzz_examples")
    log = open(tmp_path / "fuzz.log", "w")  # noqa: SIM115
    endings = {"run": 0, "parser": 0, "error": 0}
    failures = []
    here = set(Path.cwd().iterdir())

    def try_it(case):
        signal.alarm(SECONDS)
        try:
            with tempfile.TemporaryDirectory() as folder:
                ended = attempt(*case, Path(folder))
        except TooSlow:
            raise AssertionError(f"longer than {SECONDS} s: {case}") from None
        finally:
            signal.alarm(0)
        endings[ended.split(":")[0]] += 1
        log.write(f"{case[2]}: {ended}\n")
        log.flush()
        assert set(Path.cwd().iterdir()) == here

    def try_kind(kind, examples):
        options = settings(
            max_examples=examples, deadline=None, database=None, report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        seed(KINDS.index(kind))(options(given(configurations(kind))(lambda case: try_it(case))))()

    before = signal.signal(signal.SIGALRM, too_slow)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kinds = [KINDS[i * len(KINDS) // count] for i in range(count)] if count < len(KINDS) else KINDS
            for kind in kinds:
                try:
                    try_kind(kind, -(-count // len(kinds)))
                except AssertionError as failure:
                    failures.append(f"{kind}: {failure}")
    finally:
        signal.signal(signal.SIGALRM, before)
        log.close()
    print(f"{sum(endings.values())} configurations: {endings}")
    assert not failures, "\n\n".join(failures)
    assert min(endings.values()) > 0
