"""The runner: one loop for every kind of method, checkpoints, interruption, the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import start_script

import sparsefx
from sparsefx.cli import documented, documented_options, main
from sparsefx.cycle import AdaptiveThreshold, ForAllLayers, Timing
from sparsefx.errors import ArgumentError, CheckpointError, MissingPackageError
from sparsefx.experiments.ledger.identity import run_name
from sparsefx.experiments.ledger.ledger import Ledger
from sparsefx.experiments.ledger.record import EpochRow
from sparsefx.experiments.networks import NETWORKS
from sparsefx.experiments.run.analyse import ANALYSES, Analysis
from sparsefx.experiments.run.interrupt import Interrupt
from sparsefx.experiments.run.logs.choose import logs_for
from sparsefx.experiments.run.logs.log import Log, Logs
from sparsefx.experiments.run.logs.screen import Lines, describe
from sparsefx.experiments.run.recipes.recipe import Recipe
from sparsefx.experiments.run.settings import settings
from sparsefx.experiments.run.train import Experiment
from sparsefx.methods import METHODS, Method, Rounds
from sparsefx.methods.options import PARTS, options_of

SHORT = {"epochs": 2, "batch_size": 20, "validation": 40}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """160 + 40 made digits: a bright square whose place is the class."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)

    def made(count):
        targets = np.arange(count) % 10
        images = generator.integers(0, 60, (count, 28, 28))
        for image, target in zip(images, targets, strict=True):
            row, column = divmod(int(target), 4)
            image[9 * row : 9 * row + 8, 7 * column : 7 * column + 6] += 180
        return images.astype(np.uint8), targets

    (x, y), (x_test, y_test) = made(200), made(60)
    np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return str(folder)


def experiment(root, method="sparse-momentum", density=0.2, options=None, network="lenet-300-100", **changes):
    return Experiment(
        settings(
            network,
            root,
            data="mnist",
            method_name=method,
            density=density,
            options=options,
            changes={**SHORT, **changes},
        )
    )


class Stop(Log):
    """A log that asks to stop after so many steps."""

    def __init__(self, steps):
        self.interrupt, self.left = Interrupt(), steps

    def step(self, progress):
        self.left -= 1
        self.interrupt.is_set = self.left == 0


def run(one, folder, steps=0):
    stop = Stop(steps)
    return one.run(folder, log=Logs([stop, logs_for(folder, one.rows)]), interrupt=stop.interrupt)


KINDS = [
    ("dense", 1.0, {}),
    ("sparse-momentum", 0.2, {}),
    ("rigl", 0.2, {"every": 3}),
    ("snip", 0.2, {}),
    ("grasp", 0.2, {}),
    ("gradual", 0.2, {"every": 2}),
    ("lottery-ticket", 0.3, {"prunings": 2, "rewind": 0.25}),
    ("layer-wise-obs", 0.2, {"score_batches": 4, "prunings": 1}),
    ("learning-compression", 0.2, {}),
    ("lottery-ticket", 0.3, {"prunings": 1, "rewind": 0.0}),
    ("variational-dropout", 0.2, {}),
    ("hard-concrete", 0.2, {}),
    ("top-kast", 0.2, {"every": 3}),
    ("deep-r", 0.2, {}),
    ("thin-dense", 0.2, {}),
]


QUICK = ("sparse-momentum", "lottery-ticket", "layer-wise-obs", "hard-concrete", "thin-dense")
"""What resumes in a way of its own: masks, rounds, scores of layers, a regulariser, another network."""


@pytest.mark.parametrize(
    ("method", "density", "options"),
    [pytest.param(*kind, marks=[] if kind[0] in QUICK else pytest.mark.slow) for kind in KINDS],
)
def test_an_interrupted_run_ends_like_one_that_was_not(root, tmp_path, method, density, options):
    whole = experiment(root, method, density, options)
    expected = run(whole, tmp_path / "whole")
    assert expected is not None
    first = experiment(root, method, density, options)
    assert run(first, tmp_path / "cut", steps=11) is None  # in the middle of the second epoch
    second = experiment(root, method, density, options)
    assert second.resume(tmp_path / "cut")
    resumed = run(second, tmp_path / "cut")
    assert resumed.final == expected.final
    assert resumed.epochs == expected.epochs
    assert resumed.layers == expected.layers
    for key, tensor in whole.training.model.state_dict().items():
        assert torch.equal(tensor, second.training.model.state_dict()[key]), key
    second.forget(tmp_path / "cut")
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()


def test_a_run_tells_what_it_did(root, tmp_path):
    one = experiment(root, epochs=6, lr=0.05)
    found = run(one, tmp_path)
    assert found.final.density == pytest.approx(0.2, abs=1e-5)
    assert [row.epoch for row in found.epochs] == [1, 2, 3, 4, 5, 6]
    assert found.epochs[0].prune_rate == pytest.approx(0.4665, abs=1e-4)
    assert found.epochs[-1].prune_rate is None  # no cycle after the last epoch
    assert found.final.train_loss < found.epochs[0].train_loss
    assert found.final.test_error < 60
    assert found.shortened
    assert found.recipe["epochs"] == 6
    lines = (tmp_path / "epochs.csv").read_text().splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("epoch,train_loss,validation_error,test_error")
    lines = (tmp_path / "epochs.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["prune_rate"] == found.epochs[0].prune_rate
    assert describe(found.epochs[0]).startswith("epoch 1, loss ")
    assert found.final.explored > 0.2
    assert Ledger(tmp_path / "results").add(found).exists()


def test_the_same_seed_gives_the_same_run_and_another_does_not(root, tmp_path):
    results = [run(experiment(root), tmp_path / str(n)) for n in range(2)]
    assert results[0].final == results[1].final
    other = Experiment(settings("lenet-300-100", root, data="mnist", density=0.2, seed=1, changes=SHORT))
    assert run(other, tmp_path / "other").final != results[0].final


def test_a_runs_seed_alone_decides_what_is_random(root):
    """Published figures stay: the network draws from torch's generator, and nothing else does."""
    torch.manual_seed(99)
    one = experiment(root, "set")
    after = torch.get_rng_state()
    torch.manual_seed(one.settings.seed)
    network = one.settings.network.build(classes=10, width=1.0)
    assert torch.equal(torch.get_rng_state(), after)
    generator = torch.Generator().manual_seed(one.settings.seed)
    expected = sparsefx.sparsify(network, 0.2, distribution="set", generator=generator)
    for name, value in expected.state_dict().items():
        assert torch.equal(one.training.model.state_dict()[name], value)
    state = one.training.optimizer.state_dict()["sparse_momentum"]["generator"]
    assert torch.equal(state, generator.get_state())


def test_rounds_take_their_share_of_epochs_and_learning_rate(root, tmp_path):
    one = experiment(root, "han", 0.3, {"prunings": 1, "retraining": 0.5}, epochs=4)
    found = run(one, tmp_path)
    assert [row.epoch for row in found.epochs] == [1, 2, 3, 4, 5, 6]
    assert found.epochs[0].learning_rate == pytest.approx(0.1)
    assert found.epochs[4].learning_rate == pytest.approx(0.01)
    one = experiment(root, "lottery-ticket", 0.3, {"prunings": 1, "rewind": 0.5}, epochs=4)
    assert [row.epoch for row in run(one, tmp_path).epochs] == [1, 2, 3, 4, 5, 6]


def test_precision_and_memory_format(root, tmp_path):
    one = Experiment(
        settings(
            "lenet5-caffe",
            root,
            data="mnist",
            density=0.2,
            changes=SHORT,
            precision="bfloat16",
            channels_last=True,
        )
    )
    assert run(one, tmp_path).recipe["precision"] == "bfloat16"


def test_thin_dense_is_as_small_as_the_sparse_network(root, tmp_path):
    one = experiment(root, "thin-dense", 0.1)
    size = sum(parameter.numel() for parameter in one.training.model.parameters())
    assert size == pytest.approx(266_200 * (0.1 + 1 / 32) + 410, rel=0.02)
    assert run(one, tmp_path).final.density == 1


def command(root, folder, *more):
    options = ["--epochs", "2", "--batch-size", "20", "--validation", "40", "--density", "0.2"]
    places = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    return [
        "train",
        "--network",
        "lenet-300-100",
        "--data",
        "mnist",
        "--root",
        root,
        *options,
        *places,
        *more,
    ]


def test_the_command_line_trains_and_reports(root, tmp_path, capsys):
    assert main(command(root, tmp_path)) == 0
    (path,) = (tmp_path / "results").glob("*.jsonl")
    assert json.loads(path.read_text())["method"] == "sparse-momentum"
    told = capsys.readouterr()
    assert "test error" in told.out
    assert "epoch 2, loss" in told.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert {file.name for file in folder.iterdir()} == {"epochs.csv", "epochs.jsonl", "model.pt"}
    assert main(command(root, tmp_path)) == 0
    assert "is there already" in capsys.readouterr().out
    assert main(["report", "tables", "--ledger", str(path.parent), "--out", str(tmp_path / "tables")]) == 0
    assert any((tmp_path / "tables").glob("*.csv"))
    assert main(["list", "methods"]) == 0
    assert "rigl" in capsys.readouterr().out
    assert main(["list", "options"]) == 0
    assert "prune_rate" in capsys.readouterr().out
    assert main(["report", "tables", "--ledger", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--network", "lenet-300"], r"network='lenet-300' is not known; did you mean 'lenet-300-100'"),
        (["--root", "nowhere"], r"root='nowhere' holds no MNIST"),
        (["--method", "rigel"], r"did you mean 'rigl'"),
        (["--option", "grow"], r"is not of the form FIELD=VALUE"),
        (["--option", "density=0.5"], r"option density=0.5 has an argument of its own"),
        (["--option", "rounds=2"], r"rounds=2 is no Rounds"),
        (["--method", "dense"], r"it masks nothing"),
        (["--network", "vgg16-d"], r"network 'vgg16-d' takes inputs \(3, 32, 32\)"),
        (["--data", ""], r"neither data nor recipe is given"),
        (["--option", "grow=up"], r"grow='up' is not known"),
        (["--density", "1.5"], r"density=1.5 is not in \(0, 1\]; 0.05 keeps 5% of the weights"),
        (["--epochs", "0"], r"epochs=0 of a recipe must be"),
        (["--data", "mnits"], r"mnits"),
        (["--recipe", "cifar10"], r"recipe 'cifar10' is for cifar10, not for data='mnist'"),
        (["--setting", "loose"], r"loose"),
        (["--device", "gpu"], r"device='gpu' is not a device"),
        (["--seed", "-1"], r"seed=-1 is not a whole number"),
        (["--seed", str(2**64)], r"has more than 64 bits"),
        (["--device", "meta"], r"runs are for 'cpu' and 'cuda'"),
        (["--analyse", "speedup"], r"lenet-300-100 has no convolution to estimate"),
        (["--minutes", "nan"], r"--minutes nan is not a time"),
        (["--minutes", "-1"], r"--minutes -1.0 is not a time"),
        (["--drop-last", "True", "--batch-size", "500"], r"leave no batch of 160 training samples"),
        (["--method", "set", "--prune-rate", "0.1"], r"prune_rate=0.1 is of the recipe of sparse-momentum"),
        (["--method", "rigl", "--cycle-every", "5"], r"its own are options: every="),
        (["--method", "granet", "--option", "chance=0.5"], r"chance=0.5 is neither None nor a function"),
        (["--method", "granet", "--option", "every=(1,2)"], r"holds no pairs"),
        (["--method", "granet", "--option", "update=x"], r"update='x' is not a function of the method"),
        (["--method", "granet", "--option", "options=3"], r"options=3 has no effect without regulariser"),
    ],
)
def test_commands_that_cannot_be(root, tmp_path, capsys, change, message):
    assert main(command(root, tmp_path, *change)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(root, tmp_path):
    arguments = command(root, tmp_path, "--epochs", "400", "--minutes", "1000")
    process = start_script(Path(sparsefx.__file__).parent / "__main__.py", *arguments, folder=str(tmp_path))
    folders = tmp_path / "runs"
    deadline = time.monotonic() + 120
    while not any(len(path.read_text().splitlines()) > 2 for path in folders.glob("*/epochs.csv")):
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert "the same command with --resume goes on" in (tmp_path / "err").read_text("utf-8")
    assert len(list(folders.glob("*/checkpoint.pt"))) == 1


def test_a_checkpoint_is_not_lost_or_mistaken(root, tmp_path, capsys):
    one = experiment(root)
    assert run(one, tmp_path, steps=3) is None
    other = experiment(root, density=0.3)
    with pytest.raises(CheckpointError, match="is of another run: density differ"):
        other.resume(tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:-100], bytes(flipped), b"", b"PK" + whole, whole[:10]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is no checkpoint of a run, or damaged"):
            experiment(root).resume(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        experiment(root).resume(tmp_path)
    assert not experiment(root).resume(tmp_path / "nothing")


def test_a_second_ctrl_c_is_not_waited_for():
    before = signal.getsignal(signal.SIGINT)  # a job in the background starts with it ignored
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_tuned_recipes_and_prune_rates():
    found = settings("lenet-300-100", "data", data="mnist", method_name="variational-dropout")
    assert (found.recipe.optimizer, found.recipe.lr) == ("adam", 1e-3)
    found = settings("lenet-300-100", "data", data="mnist", changes={"prune_rate": 0.2, "cycle_every": 50})
    assert (found.method.prune_rate, found.method.timing.every) == (0.2, 50)
    found = settings("lenet-300-100", "data", data="mnist", changes={"epochs": 10})
    assert found.recipe.milestones == (2500, 5000)
    assert found.shortened
    with pytest.raises(ArgumentError, match="precision='float8' is not"):
        settings("lenet-300-100", "data", data="mnist", precision="float8")


def test_dsr_removes_as_many_weights_as_its_paper_does_on_each_network():
    found = settings("lenet-300-100", "data", data="mnist", method_name="dsr", density=0.01)
    assert found.method.prune == ForAllLayers(AdaptiveThreshold(wanted=600))
    kinder = {"prune": "magnitude", "prune_rate": 0.1}
    found = settings("wrn-28-2", "data", data="cifar10", method_name="dsr", options=kinder)
    assert found.method.prune == "magnitude"


def test_a_network_in_another_spelling_is_the_same_run():
    named, spelled = (
        settings(name, "data", data="mnist", method_name="deep-r")
        for name in ("lenet-300-100", "LeNet300_100")
    )
    assert spelled.configuration("mnist") == named.configuration("mnist")
    assert spelled.method == named.method


def test_what_a_paper_sets_for_its_network_is_on_record():
    tuned = settings("lenet-300-100", "data", data="mnist", method_name="deep-r")
    assert tuned.configuration("mnist")["recipe"]["tuned"] == {"distribution": "'erk'"}
    assert tuned.method.distribution == "erk"
    chosen = settings(
        "lenet-300-100", "data", data="mnist", method_name="deep-r", options={"distribution": "uniform"}
    )
    assert "tuned" not in chosen.configuration("mnist")["recipe"]
    assert chosen.method.distribution == "uniform"
    assert "tuned" not in settings("lenet5-caffe", "data", data="mnist").configuration("mnist")["recipe"]


def test_analyses_are_kept(root, tmp_path):
    one = experiment(root, "static", network="lenet5-caffe")
    log = Log()
    found = one.run(
        tmp_path, log=log, interrupt=Interrupt(), analyses=["specialisation", "speedup", "top5_error"]
    )
    assert found.analyses["specialisation"]["classes"] == 10
    assert found.analyses["speedup"]["weights"]["sparse_by_flops"] == pytest.approx(5.0, rel=0.01)
    assert 0 <= found.analyses["top5_error"] <= found.final.test_error


def test_tensorboard_or_how_to_get_it(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match="pip install tensorboard"):
        logs_for(tmp_path, tensorboard=True)
    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, epoch):
            written.append((name, epoch))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    logs = logs_for(tmp_path, tensorboard=True)
    one = experiment(root)
    one.run(tmp_path, log=logs, interrupt=Interrupt())
    logs.close()
    assert written[0] == str(tmp_path)
    assert {("train_loss", 1), ("test_error", 1), ("sparse/density", 1), ("density/1", 1)} <= set(written)
    assert written[-1] == "closed"


def test_results_that_cannot_be_written_are_told_before_training(root, tmp_path, capsys):
    (tmp_path / "results").write_text("in the way")
    assert main(command(root, tmp_path)) == 2
    assert "results" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_last_batch_of_one_sample_is_refused(root):
    with pytest.raises(ArgumentError, match="batch_size=53 leaves one of 160 training samples"):
        experiment(root, batch_size=53)
    experiment(root, batch_size=53, drop_last=True)


@pytest.mark.filterwarnings("ignore:weights of .* are not finite")  # of the cycle before it
def test_a_diverged_run_is_told(root, tmp_path, capsys):
    arguments = command(root, tmp_path, "--lr", "1e30", "--epochs", "50", "--export")
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert "the training diverged: the loss is not finite after" in told.err
    assert "--warmup-epochs 2; or lower it, --lr 1e+29; or let cycles move less, --prune-rate" in told.err
    assert "test error" not in told.out
    (entry,) = Ledger(tmp_path / "results").runs()
    assert entry.final.train_loss is None
    assert len(entry.epochs) < 50
    assert main(arguments) == 0  # it is in the ledger, which does not hide seeds that diverge
    assert "is there already" in capsys.readouterr().out


def test_one_loss_that_is_not_finite_stops_nothing(root, tmp_path):
    one = experiment(root)
    whole = one.model.forward
    calls = []

    def once_infinite(x):
        calls.append(0)
        return whole(x) * (torch.inf if len(calls) == 3 and one.model.training else 1)

    one.model.forward = once_infinite
    one.training.optimizer.register_step_pre_hook(lambda *_: _clear(one.model))
    run(one, tmp_path)
    assert not one.diverged
    assert one.epoch == SHORT["epochs"]


def _clear(model):
    for parameter in model.parameters():
        parameter.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def test_the_trained_network_is_kept_and_exported(root, tmp_path):
    assert main(command(root, tmp_path, "--export")) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    state = torch.load(folder / "model.pt", weights_only=True)
    sparse = sparsefx.sparsify(NETWORKS["lenet-300-100"].build(), 0.2)
    sparse.load_state_dict(state)
    small = sparsefx.load(folder / "compact.safetensors", NETWORKS["lenet-300-100"].build())
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(small(x), sparse.eval()(x), rtol=1e-4, atol=1e-4)


def test_every_option_is_documented():
    for kind in (Method, *PARTS.values(), Timing, Rounds, Recipe):
        assert [f.name for f in dataclasses.fields(kind) if f.name not in documented(kind)] == []
    assert documented_options().keys() >= options_of(METHODS["rigl"]).keys() | {"every", "first", "prunings"}


def test_the_time_left_is_that_of_the_round(monkeypatch, capsys):
    seconds = iter([0, 10, 1000, 1030])
    monkeypatch.setattr("sparsefx.experiments.run.logs.screen.time.monotonic", lambda: next(seconds))
    row = EpochRow(1, 0.5, None, 2.0, 0.1, None, ())
    lines = Lines()
    for round_, step in ((0, 1), (0, 11), (1, 1), (1, 4)):
        lines.step(SimpleNamespace(step=step, training=SimpleNamespace(round=round_, steps=31)))
        lines.epoch(row)
    told = [line.rpartition(", ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == [f"{left} left of this round" for left in ("0:00", "0:20", "0:00", "4:30")]


def test_fewer_than_five_classes_have_no_top_5(root, tmp_path):
    few = SimpleNamespace(data=SimpleNamespace(name="made", classes=3))
    with pytest.raises(ArgumentError, match="made has 3 classes only"):
        ANALYSES["top5_error"].check(few)


def test_a_run_whose_analysis_fails_is_not_lost(root, tmp_path, capsys, monkeypatch):
    def fail(setup):
        raise ArgumentError("it cannot be measured")

    monkeypatch.setitem(ANALYSES, "speedup", Analysis(fail))
    expected = run(experiment(root), tmp_path / "whole")
    assert main(command(root, tmp_path, "--analyse", "speedup")) == 2
    assert "it cannot be measured" in capsys.readouterr().err
    assert main(command(root, tmp_path, "--resume")) == 0
    (found,) = Ledger(tmp_path / "results").runs()
    assert (found.final, found.epochs) == (expected.final, expected.epochs)


def test_rounds_are_not_lost_either(root, tmp_path):
    options = {"prunings": 2, "rewind": 0.25}
    whole = experiment(root, "lottery-ticket", 0.3, options)
    expected = run(whole, tmp_path)
    again = experiment(root, "lottery-ticket", 0.3, options)
    assert again.resume(tmp_path)  # from the checkpoint of the last step
    assert run(again, tmp_path).final == expected.final


def test_training_goes_on_where_no_checkpoint_can_be_written(root, tmp_path):
    (tmp_path / "checkpoint.pt").mkdir()
    one = experiment(root)
    with pytest.warns(UserWarning, match="no checkpoint was written, training goes on: .*checkpoint.pt"):
        found = one.run(tmp_path, log=Log(), interrupt=Interrupt(), checkpoint_seconds=0)
    assert found is not None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_network_is_written_before_the_ledger_says_it_is_done(root, tmp_path, capsys):
    name = run_name(experiment(root).configuration)
    in_the_way = tmp_path / "runs" / name / "model.pt"
    in_the_way.mkdir(parents=True)
    assert main(command(root, tmp_path)) == 2
    assert "model.pt" in capsys.readouterr().err
    assert not Ledger(tmp_path / "results").runs()
    in_the_way.rmdir()
    assert main(command(root, tmp_path, "--resume")) == 0
    assert in_the_way.is_file()


def test_an_epoch_tells_the_rate_of_its_own_last_step(root, tmp_path):
    rows = run(experiment(root, milestones=(8,), milestone_unit="steps"), tmp_path).epochs
    assert [row.learning_rate for row in rows] == pytest.approx([0.1, 0.01])


def test_a_page_may_lie_elsewhere_than_the_pictures(root, tmp_path, monkeypatch):
    Ledger(tmp_path / "results").add(run(experiment(root), tmp_path / "run"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# Results\n")
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "out" / "tables")
    assert main(["report", "tables", "--ledger", "results", "--out", out, "--page", "docs/page.md"]) == 0
    assert "(../out/tables/figure2.png)" in (tmp_path / "docs" / "page.md").read_text()


def test_an_interrupted_analysis_is_not_the_end_of_a_run(root, tmp_path, monkeypatch):
    interrupt = Interrupt()

    def interrupted(one):
        interrupt.is_set = True
        return {}

    monkeypatch.setitem(ANALYSES, "first", Analysis(interrupted))
    monkeypatch.setitem(ANALYSES, "second", Analysis(lambda one: {"value": 1}))
    one = experiment(root)
    assert one.run(tmp_path, log=Log(), interrupt=interrupt, analyses=["first", "second"]) is None
    again = experiment(root)
    assert again.resume(tmp_path)
    assert again.progress == "2 epochs and 0 steps"
    found = again.run(tmp_path, log=Log(), interrupt=Interrupt(), analyses=["second"])
    assert found.analyses == {"second": {"value": 1}}


def test_what_was_measured_is_told_and_the_code_is_on_record(root, tmp_path, capsys):
    arguments = command(root, tmp_path, "--export", "--analyse", "top5_error")
    assert main(arguments) == 0
    told = capsys.readouterr()
    (found,) = Ledger(tmp_path / "results").runs()
    assert f"top-5 accuracy: {100 - found.analyses['top5_error']:.4g}" in told.out
    assert re.search(r"exported: [\d,]+ of 266,610 parameters", told.out)
    assert "measuring top5_error" in told.err
    assert re.fullmatch(r"[0-9a-f]{12}\+?", found.versions.get("commit", "0" * 12))
