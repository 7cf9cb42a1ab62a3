"""Run a function in several processes that form a gloo group."""

import os
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import METHOD

shards_on_cpus = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this torch needs a GPU"
)


LIMIT = 300
"""Seconds after which ranks that wait for each other are stopped."""


def launch(world, function, *args):
    """Call ``function(rank, *args)`` on every rank; what a rank raises fails the test with its traceback."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, folder, function, args)
        ranks = mp.start_processes(_one, arguments, nprocs=world, join=False, start_method=METHOD)
        ends = time.monotonic() + LIMIT
        while not ranks.join(timeout=5):
            if time.monotonic() > ends:
                for process in ranks.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} on {world} ranks takes more than {LIMIT} s")


def _one(rank, world, folder, function, args):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(Path(folder) / "store").as_uri(),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=180),
    )
    try:
        function(rank, *args)
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
