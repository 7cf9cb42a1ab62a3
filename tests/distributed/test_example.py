"""examples/distributed.py under torchrun, as a user runs it, on a short run."""

import re
import subprocess
import sys
from pathlib import Path

from distributed.launch import shards_on_cpus

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distributed.py"
RESULT = r"accuracy ([\d.]+)%; exported: (\S+) parameters before, (\S+) after"


def run(*options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, SCRIPT, *map(str, options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@shards_on_cpus
def test_trains_sharded_and_resumes(tmp_path):
    first = run("--shard", "--epochs", 2, "--checkpoints", tmp_path)
    assert re.findall(r"epoch (\d+): (\d+) of 7942", first)[-1] == ("2", "0")
    again = run("--epochs", 3, "--checkpoints", tmp_path)  # replicas go on from what was sharded
    assert re.findall(r"epoch (\d+)", again) == ["3"]
    accuracy, before, after = re.search(RESULT, again).groups()
    assert float(accuracy) > 20
    assert int(after.replace(",", "")) <= int(before.replace(",", "")) == 79626
