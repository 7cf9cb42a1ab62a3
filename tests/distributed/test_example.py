"""examples/distributed.py on two processes, as torchrun runs it and by torchrun itself, on a short run."""

import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import run_script

from distributed.launch import shards_on_cpus

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distributed.py"
RESULT = r"accuracy ([\d.]+)%; exported: (\S+) parameters before, (\S+) after"


def by_torchrun(*options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, SCRIPT, *map(str, options)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_by_torchrun(*options):
    """Two processes with the environment that torchrun gives them; what the first of them printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    with ThreadPoolExecutor(2) as pool:
        ranks = [
            pool.submit(run_script, SCRIPT, *options, **common, RANK=rank, LOCAL_RANK=rank) for rank in (0, 1)
        ]
    for rank in ranks:
        assert rank.result().returncode == 0, rank.result().stderr
    return ranks[0].result().stdout


@pytest.mark.slow  # tests/distributed has each of its steps
@shards_on_cpus
@pytest.mark.parametrize("run", [as_by_torchrun, by_torchrun])
def test_trains_sharded_and_resumes(run, tmp_path):
    first = run("--shard", "--epochs", 2, "--checkpoints", tmp_path)
    assert re.findall(r"epoch (\d+): (\d+) of 7942", first)[-1] == ("2", "0")
    again = run("--epochs", 3, "--checkpoints", tmp_path)  # replicas go on from what was sharded
    assert re.findall(r"epoch (\d+)", again) == ["3"]
    accuracy, before, after = re.search(RESULT, again).groups()
    assert float(accuracy) > 20
    assert int(after.replace(",", "")) <= int(before.replace(",", "")) == 79626
