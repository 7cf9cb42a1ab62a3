"""FSDP2 and tensor-parallel weights on the CPU, against one process on the same global batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import sparsefx
from distributed import made
from distributed.launch import launch, shards_on_cpus
from sparsefx.cycle import Clock, LayerState
from sparsefx.cycle.positions.draw import draw
from sparsefx.cycle.positions.for_all_layers import largest_of_all
from sparsefx.cycle.positions.select import select_largest
from sparsefx.errors import ArgumentError, CycleError
from sparsefx.masking.sharding import block_of, count_true, local
from sparsefx.regularisers import HardConcrete

METHODS = {
    "sparse momentum": {},
    "rigl": {"grow": "gradient", "redistribute": "none"},
    "set": {"grow": "random", "redistribute": "none", "prune": "magnitude_by_sign"},
    "global": {"grow": "global_momentum", "prune": "global_magnitude", "redistribute": "magnitude"},
}


def at_the_root(net, mesh):
    return fully_shard(net, mesh=mesh)


def by_layers(net, mesh):
    for layer in (net.body, net.head):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def by_columns(net, mesh):
    place = lambda p: Shard(1) if p.dim() > 1 and p.shape[1] % 4 == 0 else Shard(0)  # noqa: E731
    return fully_shard(net, mesh=mesh, shard_placement_fn=place)


@shards_on_cpus
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_shards_train_as_one(world):
    launch(world, _train_as_one, world)


def _train_as_one(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for name, parts in METHODS.items():
        _compare(rank, world, at_the_root, mesh, {}, made.sgd, parts, name)
    _compare(rank, world, by_layers, mesh, {"trace": False}, made.sgd, {}, "layers")
    _compare(rank, world, at_the_root, mesh, {}, made.adam, {}, "adam")
    _compare(rank, world, at_the_root, mesh, {}, made.plain_sgd, {}, "averages")
    if world == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        _compare(rank, world, at_the_root, mesh, {}, made.sgd, {}, "replicated shards")


def _compare(rank, world, shard, mesh, options, make_optimizer, parts, name):
    alone = made.model(**options)
    plain = sparsefx.SparseMomentum(make_optimizer(alone), alone, cycles=4, **parts)
    expected = made.train(alone, plain, 8)
    net = shard(made.model(**options), mesh)
    optimizer = sparsefx.SparseMomentum(make_optimizer(net), net, cycles=4, **parts)
    held = net.get_submodule("stem").mask
    assert isinstance(held, DTensor)
    assert held.placements == net.get_parameter("stem.weight").placements
    made.assert_same_masks(made.train(net, optimizer, 8, rank, world), expected)
    for layer, weight in made.weights(net).items():
        torch.testing.assert_close(weight, made.weights(alone)[layer], rtol=1e-9, atol=1e-12, msg=name)
    for record, one in zip(optimizer.history, plain.history, strict=True):
        assert [layer.active for layer in record.layers] == [layer.active for layer in one.layers]
        assert [layer.numel for layer in record.layers] == [layer.numel for layer in one.layers]


@shards_on_cpus
def test_columns_and_tensor_parallel_weights():
    launch(4, _in_both_dimensions)


def _in_both_dimensions(rank):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    _compare(rank, 4, by_columns, init_device_mesh("cpu", (4,)), {}, made.sgd, {}, "columns")
    alone, net = perceptron(), perceptron()
    plain = sparsefx.SparseMomentum(made.sgd(alone), alone, cycles=3)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    net = fully_shard(parallelize_module(net, mesh["tensor"], plan), mesh=mesh["data"])
    optimizer = sparsefx.SparseMomentum(made.sgd(net), net, cycles=3)
    assert len(net.get_parameter("0.weight").placements) == 2
    for step in range(3):
        x = torch.randn(8, 10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for trained, wrapper, part in (
            (alone, plain, x),
            (net, optimizer, made.part(x, mesh["data"].get_local_rank(), 2)),
        ):
            wrapper.zero_grad()
            trained(part).square().mean().backward()
            wrapper.step()
            wrapper.cycle()
        made.assert_same_masks([made.masks(net)], [made.masks(alone)])
    for name, weight in made.weights(net).items():
        torch.testing.assert_close(weight, made.weights(alone)[name], rtol=1e-9, atol=1e-12)


def perceptron():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(10, 18), nn.ReLU(), nn.Linear(18, 6)).double()
    return sparsefx.sparsify(net, density=0.3, trace=False)


@pytest.mark.parametrize("cases", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_choices_across_processes(cases):
    launch(3, _choose, cases)


def _choose(rank, cases):
    """Random layers, ties included, sharded evenly or not, by any dimension: the choice of one process."""
    mesh = init_device_mesh("cpu", (3,))
    generator = torch.Generator().manual_seed(0)
    for case in range(cases):
        shapes = [torch.randint(1, 8, (case % 3 + 1,), generator=generator).tolist() for _ in range(2)]
        scores = [_some_scores(case, shape, generator) for shape in shapes]
        allowed = [torch.rand(shape, generator=generator) < 0.7 for shape in shapes]
        states, parts = [], []
        for index, (values, mask) in enumerate(zip(scores, allowed, strict=True)):
            dimension = case % values.dim() if index == 0 else 0
            sharded = distribute_tensor(values, mesh, [Shard(dimension)])
            block = block_of(sharded)
            states.append(LayerState("layer", local(sharded), block.part_of(mask), block=block))
            parts.append(sharded)
            positions = torch.arange(values.numel()).view(values.shape)
            assert torch.equal(block.positions(values.device), block.part_of(positions).flatten())
        total = sum(int(mask.sum()) for mask in allowed)
        for count in {0, total // 2, total}:
            full = [LayerState("layer", v, m) for v, m in zip(scores, allowed, strict=True)]
            expected = largest_of_all(full, scores, allowed, count)
            found = largest_of_all(states, [local(p) for p in parts], [s.mask for s in states], count)
            assert all(
                torch.equal(part, state.block.part_of(one))
                for part, state, one in zip(found, states, expected, strict=True)
            )
        state, values, mask = states[0], scores[0], allowed[0]
        count = int(mask.sum()) // 2
        chosen = state.select_largest(local(parts[0]), state.mask, count)
        assert torch.equal(chosen, state.block.part_of(select_largest(values, mask, count)))
        for number in (count, int(mask.sum()) // 5):
            one = draw(LayerState("layer", values, mask), mask, number, torch.Generator().manual_seed(case))
            many = draw(state, state.mask, number, torch.Generator().manual_seed(case))
            assert torch.equal(many, state.block.part_of(one))
            assert state.count(many) == number
        assert state.mean(local(parts[0]).abs(), state.mask) == pytest.approx(
            float(values[mask].abs().mean()) if mask.any() else 0.0
        )


def _some_scores(case, shape, generator):
    values = torch.randn(shape, generator=generator, dtype=(torch.float32, torch.float64)[case % 2])
    return values.round() * -0.0 if case % 5 == 0 else values.round() if case % 5 == 1 else values


@shards_on_cpus
def test_what_cannot_be_sharded_says_so():
    launch(2, _refuse)


def _refuse(rank):
    mesh = init_device_mesh("cpu", (2,))
    net = at_the_root(made.model(), mesh)
    with pytest.raises(ArgumentError, match=r"export needs full weights, but stem\.weight and 5 more"):
        sparsefx.export(net, (made.batch(0)[0],))
    with pytest.raises(ArgumentError, match="prune needs full weights"):
        sparsefx.prune(net, 0.1)
    with pytest.raises(ArgumentError, match="report needs full weights"):
        sparsefx.report(net)
    with pytest.raises(ArgumentError, match="sparsify needs full weights"):
        sparsefx.sparsify(fully_shard(nn.Linear(4, 4), mesh=mesh))
    with pytest.raises(ArgumentError, match="a regulariser needs full weights"):
        HardConcrete(at_the_root(made.model(density=1.0), mesh), samples=8)
    with pytest.raises(ArgumentError, match=r"plot\.masks needs full weights"):
        sparsefx.plot.masks(net)
    optimizer = sparsefx.SparseMomentum(made.sgd(net), net, cycles=2, grow="momentum_neuron")
    before = made.masks(net)
    with pytest.raises(CycleError, match="momentum_neuron' needs all of layer 'stem'"):
        made.train(net, optimizer, 2, rank, 2)
    made.assert_same_masks([made.masks(net)], [before])
    assert "density" not in str(net)  # counting it would wait for the other process
    sgd = made.sgd(net)
    with torch.no_grad():
        net(made.batch(0)[0])
    with pytest.raises(ArgumentError, match="report needs full weights"):
        sparsefx.report(net)  # evaluation left weights gathered
    with torch.no_grad():
        net(made.batch(0)[0])
    optimizer = sparsefx.SparseMomentum(sgd, net, cycles=2)
    sparsefx.apply_masks(net)
    made.train(net, optimizer, 2, rank, 2)
    assert all(
        count_true(layer.mask) == int(layer_mask.sum())
        for layer, layer_mask in zip(sparsefx.masked_weights(net), made.masks(net).values(), strict=True)
    )


@shards_on_cpus
def test_replicas_of_shards_that_differ_are_found_out_by_all():
    launch(4, _differ)


def _differ(rank):
    """What differs on one rank must not leave the others waiting for it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    net = at_the_root(made.model(), mesh)
    optimizer = sparsefx.SparseMomentum(made.sgd(net), net, cycles=4)
    if rank == 3:
        mask = local(net.get_submodule("body").mask)
        mask[0] = ~mask[0]
    with pytest.raises(CycleError, match=r"those of body on rank 2, 3 from rank 0's"):
        optimizer.cycle()
    net = at_the_root(made.model(), mesh)
    seeded = torch.Generator().manual_seed(int(rank == 1))
    with pytest.raises(CycleError, match=r"generators differ .*: that on rank 1 from rank 0's\. Seed"):
        sparsefx.SparseMomentum(made.sgd(net), net, cycles=4, generator=seeded)
    groups = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])]
    other = made.model(generator=torch.Generator().manual_seed(rank))
    ranks = "rank 2 from rank 0's" if rank in (0, 2) else "rank 3 from rank 1's"
    with pytest.raises(CycleError, match=f"stem, body, head on {ranks}"):
        sparsefx.SparseMomentum(made.sgd(other), other, cycles=4, group=groups[rank % 2])
    sparsefx.SparseMomentum(made.sgd(other), other, cycles=4, group=groups[1 - rank % 2])  # not in it


@shards_on_cpus
def test_uses_out_of_the_usual_order():
    launch(2, _use_oddly)


def _use_oddly(rank):
    _evaluate_before_the_step(rank)
    _shard_otherwise(rank)


def _evaluate_before_the_step(rank):
    """An evaluation leaves weights gathered, also between the backward pass and the step."""
    mesh = init_device_mesh("cpu", (2,))
    alone, net = made.model(), at_the_root(made.model(), mesh)
    plain = sparsefx.SparseMomentum(made.sgd(alone), alone, cycles=2)
    optimizer = sparsefx.SparseMomentum(made.sgd(net), net, cycles=2)
    for step in range(2):
        x, _ = made.batch(step)
        for trained, wrapper, part in ((alone, plain, x), (net, optimizer, made.part(x, rank, 2))):
            wrapper.zero_grad()
            trained(part).square().mean().backward()
            with torch.no_grad():
                trained(part)
            wrapper.step()
            wrapper.cycle()
    made.assert_same_masks([made.masks(net)], [made.masks(alone)])
    for name, weight in made.weights(net).items():
        torch.testing.assert_close(weight, made.weights(alone)[name], rtol=1e-9, atol=1e-12)
    everywhere = {name: ~mask for name, mask in made.masks(net).items()}
    for layer in sparsefx.masked_weights(net):
        layer.set_mask(everywhere[layer.name])  # full, where each rank holds a block
    made.assert_same_masks([made.masks(net)], [everywhere])


def _shard_otherwise(rank):
    mesh = init_device_mesh("cpu", (2,))
    net = made.model()
    optimizer = sparsefx.SparseMomentum(made.sgd(net), net, cycles=2)
    with pytest.raises(ArgumentError, match=r"hold the masked weights of stem.* after fully_shard"):
        made.train(at_the_root(net, mesh), optimizer, 1, rank, 2)
    flat = FullyShardedDataParallel(made.model(trace=False), device_id=torch.device("cpu"))
    with pytest.raises(ArgumentError, match=r"wrapped by FullyShardedDataParallel.* use .*fully_shard"):
        sparsefx.SparseMomentum(torch.optim.SGD(flat.parameters(), lr=0.1), flat, cycles=2)
    torch.manual_seed(0)  # one row: the other process holds nothing of it
    row = fully_shard(sparsefx.sparsify(nn.Linear(6, 1), density=0.5, trace=False), mesh=mesh)
    method = sparsefx.method("srigl", density=0.5, distribution="erk")
    clock = Clock(method.timing, 4, 4)
    srigl = sparsefx.SparseOptimizer(made.sgd(row), row, method.rules(), clock)
    row(torch.ones(1, 6)).sum().backward()
    with pytest.raises(CycleError, match="constant fan-in needs all of layer"):
        srigl.cycle()
