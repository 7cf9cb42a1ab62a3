"""The metrics of a model that FSDP shards are those of the full one, on every process."""

import pytest
import torch
from distributed import made
from distributed.launch import launch, shards_on_cpus
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sparsefx
from sparsefx.integrations import cycle_metrics


@shards_on_cpus
def test_metrics_of_a_sharded_model():
    launch(2, _compare)


def _compare(rank):
    alone = made.model(density=0.05)
    plain = sparsefx.SparseMomentum(made.sgd(alone), alone, cycles=3)
    net = made.model(density=0.05)
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    sharded = sparsefx.SparseMomentum(made.sgd(net), net, cycles=3)
    made.train(alone, plain, 4)
    made.train(net, sharded, 4, rank, 2)
    assert torch.distributed.get_world_size() == 2
    assert cycle_metrics(sharded) == pytest.approx(cycle_metrics(plain))
    assert cycle_metrics(plain)["sparse/empty_inputs"] > 0
