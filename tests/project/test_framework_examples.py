"""The examples with Lightning, Hugging Face and Accelerate, as a user runs them, in small form."""

import csv
import re
from pathlib import Path

import pytest
from processes import run_script

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *options):
    finished = run_script(EXAMPLES / name, *options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def parameters(output):
    """Before and after the export."""
    found = re.search(r"parameters ([\d,]+) -> ([\d,]+)", output)
    return [int(number.replace(",", "")) for number in found.groups()]


def cycles(path):
    """The rows that a cycle wrote."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["sparse/cycle"]]


@pytest.mark.slow  # tests/integrations/test_lightning.py has each of its steps
def test_lightning_and_its_resuming(tmp_path):
    output = run("lightning_cifar10.py", "--small", "--runs", tmp_path)
    assert "density 0.1000" in output
    assert float(re.search(r"output (\S+) of", output).group(1)) < 1e-5
    before, after = parameters(output)
    assert after < before
    assert [int(row["step"]) for row in cycles(tmp_path / "metrics.csv")] == [*range(1, 8)]
    assert (tmp_path / "compact.safetensors").exists()
    resumed = ["--epochs", "3", "--resume", tmp_path / "last.ckpt", "--runs", tmp_path / "more"]
    run("lightning_cifar10.py", "--small", *resumed)
    assert [int(row["step"]) for row in cycles(tmp_path / "more" / "metrics.csv")] == [10]


@pytest.mark.slow  # tests/integrations/test_transformers.py has each of its steps
def test_huggingface_and_its_resuming(tmp_path):
    output = run("huggingface_trainer.py", "--small", "--runs", tmp_path)
    assert "density 0.2000" in output
    assert float(re.search(r"logit (\S+)", output).group(1)) < 1e-5
    before, after = parameters(output)
    assert after < before
    assert "density 0.2000" in run(
        "huggingface_trainer.py", "--small", "--runs", tmp_path, "--epochs", 3, "--resume"
    )


def test_accelerate(tmp_path):
    output = run("accelerate_digits.py", "--epochs", 5, "--csv", tmp_path / "cycles.csv")
    assert "density 0.0500" in output
    assert float(re.search(r"network (\S+)%", output).group(1)) > 60
    before, after = parameters(output)
    assert after < before / 2
    assert [int(row["step"]) for row in cycles(tmp_path / "cycles.csv")] == [*range(11, 105, 11)]
