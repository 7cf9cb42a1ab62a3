"""DistributedDataParallel on the CPU, against one process on the same global batch."""

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import sparsefx
from distributed import made
from distributed.launch import launch
from sparsefx.errors import ArgumentError, CycleError

METHODS = {
    "sparse momentum": {},
    "rigl": {"grow": "gradient", "redistribute": "none"},
    "set": {"grow": "random", "redistribute": "none", "prune": "magnitude_by_sign"},
    "global": {"grow": "global_momentum", "prune": "global_magnitude"},
}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_train_as_one(world):
    launch(world, _train_as_one, world)


def _train_as_one(rank, world):
    for name, options in METHODS.items():
        for make_optimizer in (made.sgd, made.adam) if name == "sparse momentum" else (made.sgd,):
            alone = made.model()
            plain = sparsefx.SparseMomentum(make_optimizer(alone), alone, cycles=4, **options)
            expected = made.train(alone, plain, 8)
            net = made.model()
            ddp = DistributedDataParallel(net)
            inside = make_optimizer is made.adam  # the wrapper may know of DDP or not
            optimizer = sparsefx.SparseMomentum(
                make_optimizer(net), net if inside else ddp, cycles=4, **options
            )
            made.assert_same_masks(made.train(ddp, optimizer, 8, rank, world), expected)
            for layer, weight in made.weights(net).items():
                torch.testing.assert_close(
                    weight, made.weights(alone)[layer], rtol=1e-9, atol=1e-12, msg=name
                )


def test_accumulation_and_static_graph():
    launch(2, _accumulate)


def _accumulate(rank):
    for accumulates in (True, False):  # together torch's DDP cannot do both in its first step
        _train_by_steps(rank, accumulates)


def _train_by_steps(rank, accumulates):
    alone = made.model()
    plain = sparsefx.SparseMomentum(made.sgd(alone), alone, cycles=4, every=2)
    net = made.model()
    ddp = DistributedDataParallel(net, static_graph=not accumulates)
    optimizer = sparsefx.SparseMomentum(made.sgd(net), ddp, cycles=4, every=2)
    for step in range(8):
        x, y = made.batch(step)
        plain.zero_grad()
        F.cross_entropy(alone(x), y).backward()
        plain.step()
        x, y = made.part(x, rank, 2), made.part(y, rank, 2)
        optimizer.zero_grad()
        if accumulates:
            with ddp.no_sync():
                (F.cross_entropy(ddp(x[:2]), y[:2]) / 2).backward()
            (F.cross_entropy(ddp(x[2:]), y[2:]) / 2).backward()
        else:
            F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
    made.assert_same_masks([made.masks(net)], [made.masks(alone)])
    assert len(optimizer.history) == 4


def test_masks_are_not_sent_and_differences_found_out():
    launch(2, _differ)


def _differ(rank):
    net = made.model()
    for wrapped in (net, torch.compile(net, backend="eager")):
        ddp = DistributedDataParallel(wrapped)
        assert not any(buffer.dtype == torch.bool for buffer in ddp.modules_buffers)
    optimizer = sparsefx.SparseMomentum(made.sgd(net), ddp, cycles=4)
    made.train(ddp, optimizer, 2, rank, 2)
    if rank == 1:
        mask = net.get_submodule("body").mask
        mask[:] = mask.flip(0)
    with pytest.raises(CycleError, match=r"those of body on rank 1 from rank 0's"):
        optimizer.cycle()
    other = made.model(generator=torch.Generator().manual_seed(rank))
    with pytest.raises(CycleError, match="stem, body, head on rank 1"):
        sparsefx.SparseMomentum(made.sgd(other), DistributedDataParallel(other), cycles=4)
    with pytest.raises(CycleError, match="masks differ"):
        sparsefx.SparseMomentum(made.sgd(other), other, cycles=4, group=dist.group.WORLD)
    again, seeded = made.model(), torch.Generator().manual_seed(rank)
    with pytest.raises(CycleError, match="generators differ between processes: that on rank 1"):
        sparsefx.SparseMomentum(made.sgd(again), again, cycles=4, generator=seeded, group=dist.group.WORLD)
    for group in ("gloo", 3, [0, 1]):
        with pytest.raises(
            ArgumentError, match=r"group=.* is no process group; pass torch\.distributed\.group"
        ):
            sparsefx.SparseMomentum(made.sgd(net), net, cycles=4, group=group)


def test_ranks_with_seeds_of_their_own_draw_alike():
    launch(2, _draw_alike)


def _draw_alike(rank):
    for known in ("ddp", "group", "bare"):
        net = made.model()
        ddp = DistributedDataParallel(net)
        torch.manual_seed(10 + rank)  # as for data that differ by rank
        optimizer = sparsefx.SparseMomentum(
            made.sgd(net),
            ddp if known == "ddp" else net,
            cycles=4,
            grow="random",
            group=dist.group.WORLD if known == "group" else None,
        )
        seen = made.train(ddp, optimizer, 4, rank, 2)
        _same_everywhere(torch.cat([mask.flatten() for masks in seen for mask in masks.values()]))
        training = sparsefx.Training(
            sparsefx.method("static"), made.Net(), torch.optim.SGD, steps=1, epoch_steps=1
        )
        _same_everywhere(torch.cat([mask.flatten() for mask in made.masks(training.model).values()]))
    torch.manual_seed(20 + rank)
    if rank == 0:  # a model of one rank alone needs a seed of its own
        sparsefx.SparseMomentum(made.sgd(net), net, cycles=4, seed=1)


def _same_everywhere(mask):
    others = [torch.empty_like(mask, dtype=torch.uint8) for _ in range(2)]
    dist.all_gather(others, mask.to(torch.uint8))
    assert torch.equal(*others)
