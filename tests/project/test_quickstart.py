"""examples/quickstart.py, as a user runs it, on a short run."""

import importlib
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import assert_same
from processes import run_script, start_script

from sparsefx.experiments.networks import NETWORKS, network_name

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"
EPOCHS = 2
KEYS = [
    "dense_accuracy",
    "sparse_accuracy",
    "exported_accuracy",
    "density",
    "max_abs_difference",
    "parameters_before",
    "parameters_after",
    "channels_before",
    "channels_after",
    "latency_dense_ms",
    "latency_exported_ms",
]


run = partial(run_script, SCRIPT)


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, for what needs no process of its own."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    yield importlib.import_module("quickstart")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole short run."""
    folder = tmp_path_factory.mktemp("quickstart")
    files = [
        "--json",
        folder / "result.json",
        "--plot",
        folder / "curves.png",
        "--checkpoint",
        folder / "whole.pt",
    ]
    finished = run("--epochs", EPOCHS, *files)
    assert finished.returncode == 0, finished.stderr
    (folder / "stdout.txt").write_text(finished.stdout)
    (folder / "stderr.txt").write_text(finished.stderr)
    return folder


def test_json_has_the_documented_keys(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert list(result) == KEYS
    assert result["density"] == pytest.approx(0.1, abs=1e-4)
    assert result["sparse_accuracy"] == result["exported_accuracy"] > 0.2
    assert result["max_abs_difference"] < 1e-4
    assert result["parameters_after"] < result["parameters_before"]
    assert result["channels_after"] <= result["channels_before"]  # 2 epochs are short
    assert list(result["latency_dense_ms"]) == list(result["latency_exported_ms"]) == ["1", "64"]


def test_plot_is_a_picture(folder: Path) -> None:
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_prints_a_table_and_no_progress_bar(folder: Path) -> None:
    assert "test accuracy" in (folder / "stdout.txt").read_text()
    assert "epoch/s" not in (folder / "stderr.txt").read_text()


@pytest.mark.parametrize("seconds_into_training", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_killed_and_resumed_run_ends_bit_for_bit_the_same(
    folder: Path, tmp_path: Path, seconds_into_training: float
) -> None:
    path = tmp_path / "killed.pt"
    kill_once_there_is(path, seconds_into_training)
    resumed = run("--epochs", EPOCHS, "--checkpoint", path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"; {EPOCHS} epochs" not in resumed.stdout.splitlines()[0]
    assert_same(torch.load(path, weights_only=True), torch.load(folder / "whole.pt", weights_only=True))


def kill_once_there_is(path: Path, seconds: float) -> None:
    """Start a run, and kill it the given time after its first checkpoint."""
    process = start_script(SCRIPT, "--epochs", EPOCHS, "--checkpoint", path)
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.join()


def test_checkpoint_of_other_settings_is_refused(folder: Path, quickstart: ModuleType) -> None:
    with pytest.raises(SystemExit, match="was made with"):
        quickstart.main(["--epochs", str(EPOCHS + 1), "--checkpoint", str(folder / "whole.pt")])


def test_only_one_variant(tmp_path: Path) -> None:
    assert run("--epochs", 1, "--only", "dense", "--json", tmp_path / "result.json").returncode == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result) == KEYS
    assert [key for key in KEYS if result[key] is not None] == ["dense_accuracy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "digits", "--model", "lenet5"], "--model lenet5-caffe: --data digits has convnet"),
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--density", "1.5"], "--density 1.5: must be in (0, 1]"),
        (["--json", "missing/a.json"], "must be a file in a folder that exists"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], message: str, quickstart: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        quickstart.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("model", ["lenet-300-100", "lenet300-100", "lenet5-caffe", "lenet5"])
def test_networks_have_the_names_of_the_command_line(model: str, quickstart: ModuleType) -> None:
    options = quickstart.parse(["--data", "mnist", "--model", model])
    assert options.model == network_name(model)
    assert options.model in NETWORKS
    built = quickstart.TASKS["mnist"].networks[options.model]()
    assert count(built) == count(NETWORKS[options.model].build())


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
