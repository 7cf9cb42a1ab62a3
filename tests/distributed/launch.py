"""Run a function in several processes that form a gloo group."""

import os
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def launch(world, function, *args):
    """Call ``function(rank, *args)`` on every rank; what a rank raises fails the test with its traceback."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _one, (world, folder, function, args), nprocs=world, join=True, start_method="spawn"
        )


def _one(rank, world, folder, function, args):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=(Path(folder) / "store").as_uri(), rank=rank, world_size=world
    )
    try:
        function(rank, *args)
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
