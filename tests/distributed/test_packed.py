"""Accelerated models inside DistributedDataParallel: packed gradients are averaged as they are."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sparsefx
from distributed import made
from distributed.launch import launch
from sparsefx.errors import ArgumentError, CycleError
from sparsefx.masking.packing import packings
from sparsefx.masking.replicas import leave_packed_out

pytest.importorskip("llvmlite")

EVERY, WINDOW = 4, 2


def plain_model(density=0.3, build=made.Net, seed=3):
    torch.manual_seed(seed)
    return sparsefx.sparsify(build(), density=density, seed=0)


def model(**options):
    return sparsefx.accelerate(plain_model(**options), (torch.ones(8, 3, 6, 6),), kernels="sparse")


def optimizer_of(net, wrapped=None, make=made.sgd):
    wrapped = net if wrapped is None else wrapped
    return sparsefx.SparseMomentum(make(net), wrapped, cycles=3, every=EVERY, window=WINDOW, seed=1)


def train(net, optimizer, steps, rank=0, world=1, first=0, loss=F.cross_entropy):
    for step in range(first, first + steps):
        x, y = (made.part(tensor, rank, world) for tensor in made.batch(step))
        optimizer.zero_grad()
        loss(net(x.float()), y).backward()
        optimizer.step()


def assert_close(net, alone):
    made.assert_same_masks([made.masks(net)], [made.masks(alone)])
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_ranks_train_as_one():
    launch(2, _train_as_one)


def _train_as_one(rank):
    alone = model()
    train(alone, optimizer_of(alone, make=made.adam), 12)
    net = model(seed=3 + rank)  # DDP, and we, begin with the first rank's values
    ddp = DistributedDataParallel(net)
    optimizer = optimizer_of(net, ddp, made.adam)
    train(ddp, optimizer, 12, rank, 2)
    assert len(optimizer.history) == 3
    assert_close(net, alone)
    _resume(rank)
    _accumulate(rank)
    _clip(rank)
    _count_what_is_sent(rank)


def _resume(rank):
    """Saved in the middle of a window, loaded into other objects: bit for bit."""
    ends = []
    for stops in (True, False):
        net = model()
        ddp = DistributedDataParallel(net)
        optimizer = optimizer_of(net, ddp)
        train(ddp, optimizer, 3, rank, 2)
        if stops:
            states = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
            net = model(seed=9)
            ddp = DistributedDataParallel(net)
            optimizer = optimizer_of(net, ddp)
            net.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        train(ddp, optimizer, 5, rank, 2, first=3)
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def _accumulate(rank):
    alone, net = model(), model()
    plain, ddp = optimizer_of(alone), DistributedDataParallel(net)
    optimizer = optimizer_of(net, ddp)
    for step in range(5):
        train(alone, plain, 1, first=step)
        x, y = (made.part(tensor, rank, 2) for tensor in made.batch(step))
        optimizer.zero_grad()
        with ddp.no_sync():
            (F.cross_entropy(ddp(x[:2].float()), y[:2]) / 2).backward()
            different = torch.stack([p.grad.sum() for p in net.parameters()])
        (F.cross_entropy(ddp(x[2:].float()), y[2:]) / 2).backward()
        optimizer.step()
    _assert_differs(different)
    assert_close(net, alone)


def _assert_differs(values):
    others = [torch.empty_like(values) for _ in range(2)]
    dist.all_gather(others, values)
    assert not torch.equal(*others)


def _clip(rank):
    """The norm is that of averaged gradients, on all ranks."""
    alone, net = model(), model()
    ddp = DistributedDataParallel(net)
    norms = []
    for trained, whole, parts in ((alone, alone, (0, 1)), (net, ddp, (rank, 2))):
        optimizer = optimizer_of(trained, whole)
        x, y = (made.part(tensor, *parts) for tensor in made.batch(0))
        F.cross_entropy(whole(x.float()), y).backward()
        optimizer.step()
        norms.append(nn.utils.clip_grad_norm_(trained.parameters(), 0.1))
    torch.testing.assert_close(norms[1], norms[0])


@pytest.mark.slow
def test_compiled_models():
    launch(2, _compiled)


def _compiled(rank):
    alone, inside, outside = model(), model(), model()
    train(alone, optimizer_of(alone), 5)
    compiled = DistributedDataParallel(torch.compile(inside, backend="eager"))
    train(compiled, optimizer_of(inside, compiled), 5, rank, 2)
    compiled = torch.compile(DistributedDataParallel(outside), backend="eager")
    train(compiled, optimizer_of(outside, compiled), 5, rank, 2)
    assert_close(inside, alone)
    assert_close(outside, alone)


def _count_what_is_sent(rank):
    sent, reduce = [], dist.all_reduce

    def counted(tensor, *args, **options):
        sent.append(tensor.numel())
        return reduce(tensor, *args, **options)

    net = model(density=0.1)
    ddp = DistributedDataParallel(net)
    ddp.register_comm_hook(None, allreduce_hook)  # of DDP's own, which is in C++ otherwise
    optimizer = optimizer_of(net, ddp)
    dist.all_reduce = counted
    layers = sparsefx.masked_weights(net)
    dense = sum(layer.mask.numel() for layer in layers)
    active = sum(int(layer.mask.sum()) for layer in layers)
    beside = sum(p.numel() for p in net.parameters()) - dense + len(layers)  # biases, and what has a gradient
    for step in range(8):
        sent.clear()
        train(ddp, optimizer, 1, rank, 2, first=step)
        in_window = step % EVERY >= EVERY - WINDOW
        assert sum(sent) == beside + (dense if in_window else active), (step, sent)
    dist.all_reduce = reduce


class Around(nn.Module):
    """Holds a model that is accelerated."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Bare(nn.Sequential):
    """Has no parameter but masked weights."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(108, 9, bias=False), nn.ReLU(), nn.Linear(9, 7, bias=False))


@pytest.mark.slow
def test_other_models_and_uses():
    launch(2, _use_otherwise)


def _use_otherwise(rank):
    _inside_another(rank)
    _without_other_parameters(rank)
    _unused(rank)
    _alone_between(rank)
    _more_before_the_backward_pass(rank)
    _checkpointed(rank)
    _refuse(rank)


def _inside_another(rank):
    """DDP does not know of the masks, averages the weights itself, and these stay dense."""
    alone, net = plain_model(), model()
    train(alone, optimizer_of(alone), 5)
    ddp = DistributedDataParallel(Around(net))
    train(ddp, optimizer_of(net, ddp), 5, rank, 2)
    assert not any(packing.is_packed for packing in packings(net))
    assert_close(net, alone)
    told = Around(model())
    leave_packed_out(told)
    ddp = DistributedDataParallel(told)
    assert not any(buffer.dtype == torch.bool for buffer in ddp.modules_buffers)
    train(ddp, optimizer_of(told.inner, ddp), 5, rank, 2)
    assert all(packing.is_packed for packing in packings(told))
    train(alone := model(), optimizer_of(alone), 5)
    assert_close(told.inner, alone)
    packed = model()
    train(packed, made.sgd(packed), 1)
    late = DistributedDataParallel(Around(packed))
    with pytest.raises(ArgumentError, match="wrap the accelerated model itself"):
        late(made.batch(0)[0].float())


def _without_other_parameters(rank):
    alone, net = model(build=Bare), model(build=Bare)
    train(alone, optimizer_of(alone), 1)
    ddp = DistributedDataParallel(net)
    train(ddp, optimizer_of(net, ddp), 1, rank, 2)
    assert [packing.is_packed for packing in packings(net)] == [True, False]
    assert_close(net, alone)


def _unused(rank):
    """A frozen weight has no gradient, on any rank."""
    net = model()
    net.get_parameter("stem.weight").requires_grad_(False)
    ddp = DistributedDataParallel(net)
    sgd = made.sgd(net)
    before = net.state_dict()["stem.weight"].clone()
    train(ddp, sgd, 2, rank, 2)
    assert torch.equal(net.state_dict()["stem.weight"], before)


def _alone_between(rank):
    """A rank runs the bare model by itself, evaluates, and copies it; the others do not wait."""
    net = model()
    ddp = DistributedDataParallel(net)
    sgd = made.sgd(net)
    train(ddp, sgd, 1, rank, 2)
    if rank == 0:
        train(net, torch.optim.SGD(net.parameters(), lr=0.0), 1)
        copied = copy.deepcopy(net)
        train(copied, made.sgd(copied), 1)
        ddp.eval()
        with torch.no_grad():
            ddp.module(made.batch(0)[0].float())
        ddp.train()
    train(ddp, sgd, 1, rank, 2)
    _assert_alike(net)


def _more_before_the_backward_pass(rank):
    """What DDP has begun to average it does, whatever the bare model computes meanwhile."""
    net = model()
    ddp = DistributedDataParallel(net)
    sgd = made.sgd(net)
    x, y = (made.part(tensor, rank, 2) for tensor in made.batch(0))
    for _ in range(2):
        sgd.zero_grad()
        loss = F.cross_entropy(ddp(x.float()), y)
        with torch.no_grad():
            net.eval()(x.float())
        loss = loss + F.cross_entropy(net.train()(x.float()), y)
        loss.backward()
        sgd.step()
    _assert_alike(net)


def _checkpointed(rank):
    """Parts of the forward pass are computed again in the backward pass, outside of DDP's."""
    for reentrant in (False, True):
        net = model()
        alone = model()
        train(alone, made.sgd(alone), 2)
        around = Checkpointed(net, reentrant)
        leave_packed_out(around)
        ddp = DistributedDataParallel(around)
        train(ddp, made.sgd(net), 2, rank, 2)
        assert all(packing.is_packed for packing in packings(net))
        assert_close(net, alone)


class Checkpointed(Around):
    def __init__(self, inner, reentrant):
        super().__init__(inner)
        self.reentrant = reentrant
        self.scale = nn.Parameter(torch.ones(()), requires_grad=reentrant)  # such a one wants gradients

    def forward(self, x):
        return checkpoint(self.inner, x * self.scale, use_reentrant=self.reentrant)


def _assert_alike(net):
    values = torch.cat([p.detach().flatten() for p in net.parameters()])
    others = [torch.empty_like(values) for _ in range(2)]
    dist.all_gather(others, values)
    assert torch.equal(*others)


def _refuse(rank):
    torch.manual_seed(0)
    sparse = sparsefx.sparsify(made.Net(), density=0.3, seed=rank)
    other = sparsefx.accelerate(sparse, (torch.ones(8, 3, 6, 6),), kernels="sparse")
    with pytest.raises(CycleError, match="masks differ between processes"):
        train(DistributedDataParallel(other), made.sgd(other), 1, rank, 2)
    net = model()
    ddp = DistributedDataParallel(net)
    with pytest.raises(ArgumentError, match=r"join\(\) of DistributedDataParallel"), ddp.join():
        train(ddp, made.sgd(net), 1, rank, 2)
