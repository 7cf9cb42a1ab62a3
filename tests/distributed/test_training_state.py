"""Checkpoints that go on with another number of ranks, and after a rank was killed."""

import io
import os
import signal

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sparsefx
from distributed import made
from distributed.launch import launch, shards_on_cpus
from sparsefx.errors import ArgumentError, CheckpointError

OPTIMIZERS = {"sgd": made.sgd, "adam": made.adam, "averages": made.plain_sgd}


def begin(name, world=1, **options):
    """The model, sharded where there are several ranks, its optimizer, and both as DCP takes them."""
    net = made.model()
    if world > 1:
        net = fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
    optimizer = sparsefx.SparseMomentum(OPTIMIZERS[name](net), net, cycles=4, **options)
    return net, optimizer, {"training": sparsefx.TrainingState(net, optimizer)}


@shards_on_cpus
def test_resumes_on_another_number_of_ranks(tmp_path):
    launch(2, _save, 2, tmp_path)
    launch(1, _resume_and_save, tmp_path)
    launch(2, _resume, 2, tmp_path / "alone")


@pytest.mark.slow
@shards_on_cpus
def test_resumes_on_more_ranks(tmp_path):
    launch(2, _save, 2, tmp_path)
    launch(4, _resume, 4, tmp_path)


def _resume_and_save(rank, folder):
    _resume(rank, 1, folder)
    _save(rank, 1, folder / "alone")


def _save(rank, world, folder):
    for name in OPTIMIZERS:
        net, optimizer, state = begin(name, world, grow="random")
        made.train(net, optimizer, 4, rank, world)
        dcp.save(state, checkpoint_id=folder / name)


def _resume(rank, world, folder):
    for name in OPTIMIZERS:
        alone, plain, _ = begin(name, grow="random")
        expected = made.train(alone, plain, 8)[2:]
        net, optimizer, state = begin(name, world, grow="random")
        dcp.load(state, checkpoint_id=folder / name)
        assert optimizer.steps_done == 4
        made.assert_same_masks(made.train(net, optimizer, 4, rank, world, first=4), expected)
        assert len(optimizer.history) == 4
        for layer, weight in made.weights(net).items():
            torch.testing.assert_close(weight, made.weights(alone)[layer], rtol=1e-9, atol=1e-12)


@shards_on_cpus
def test_a_killed_rank_and_a_restart_end_bit_for_bit(tmp_path):
    with pytest.raises(Exception, match="terminated with signal SIGKILL"):
        launch(2, _train_and_save, tmp_path / "killed", 8, 5)
    launch(2, _go_on_and_train_anew, tmp_path)
    one, other = (torch.load(tmp_path / run / "end.pt") for run in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def _go_on_and_train_anew(rank, folder):
    for run in ("killed", "whole"):
        _train_and_save(rank, folder / run, 8)


def _train_and_save(rank, folder, steps, killed_at=None):
    """Save after every second step; one rank dies in the middle of a cycle."""
    net, optimizer, state = begin("adam", 2, every=2)
    done = [int(path.name) for path in folder.glob("[0-9]*") if (path / ".metadata").exists()]
    if done:
        dcp.load(state, checkpoint_id=folder / str(max(done)))
    for step in range(optimizer.steps_done, steps):
        if step == killed_at and rank == 1:
            sparsefx.MaskedWeight.set_mask = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        made.train(net, optimizer, 1, rank, 2, first=step, every=100)
        if (step + 1) % 2 == 0:
            dcp.save(state, checkpoint_id=folder / str(step + 1))
    end = made.masks(net) | {f"{name}.weight": weight for name, weight in made.weights(net).items()}
    if rank == 0:
        torch.save(end, folder / "end.pt")


def packed(value):
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


class Unused(nn.Module):
    """A layer that gets a gradient only later."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, late):
        return self.unused(self.used(x)) if late else self.used(x)


def _unused(make_optimizer):
    torch.manual_seed(0)
    net = sparsefx.sparsify(Unused().double(), density=0.3, trace=False)
    optimizer = sparsefx.SparseMomentum(make_optimizer(net), net, cycles=4)
    return net, optimizer, {"training": sparsefx.TrainingState(net, optimizer)}


def _go_on(net, optimizer, late):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(int(late)), dtype=torch.float64)
    optimizer.zero_grad()
    net(x, late).square().mean().backward()
    optimizer.step()
    optimizer.cycle()


def rprop(net):
    return torch.optim.Rprop(net.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("make_optimizer", [*OPTIMIZERS.values(), rprop])
@pytest.mark.parametrize("steps_before", [0, 1])
def test_what_had_no_gradient_yet(tmp_path, make_optimizer, steps_before):
    """It can be saved and loaded, and saving changes nothing."""
    unsaved, saved = _unused(make_optimizer), _unused(make_optimizer)
    for net, optimizer, _ in [unsaved, saved]:
        for _ in range(steps_before):
            _go_on(net, optimizer, late=False)
    dcp.save(saved[2], checkpoint_id=tmp_path)
    resumed = _unused(make_optimizer)
    dcp.load(resumed[2], checkpoint_id=tmp_path)
    for net, optimizer, _ in (unsaved, saved, resumed):
        for _ in range(2):
            _go_on(net, optimizer, late=True)
    for net, _, _ in (saved, resumed):
        made.assert_same_masks([made.masks(net)], [made.masks(unsaved[0])])
        assert all(map(torch.equal, net.parameters(), unsaved[0].parameters()))


def test_an_optimizer_that_needs_a_closure():
    *_, state = _unused(lambda net: torch.optim.LBFGS(net.parameters()))
    with pytest.raises(ArgumentError, match=r"LBFGS does not step without a closure .* by torch\.save"):
        state["training"].state_dict()


def test_bad_states(tmp_path):
    net, optimizer, state = begin("sgd")
    with pytest.raises(ArgumentError, match="optimizer must be a SparseMomentum"):
        sparsefx.TrainingState(net, optimizer.wrapped)
    with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module, not int"):
        sparsefx.TrainingState(3, optimizer)
    saved = state["training"].state_dict()
    for damaged in (saved["plain"][:100], b"", b"not of torch", None, packed([1, 2]), packed(3)):
        with pytest.raises(CheckpointError, match="cannot be used"):
            state["training"].load_state_dict({**saved, "plain": damaged})
    own = torch.load(io.BytesIO(saved["plain"]), weights_only=True)
    for entry in ("layers", "notes"):
        with pytest.raises(CheckpointError, match=f"'{entry}'] is damaged: it is 3; save it again"):
            state["training"].load_state_dict({**saved, "plain": packed({**own, entry: 3})})
    del saved["model"]
    with pytest.raises(CheckpointError, match="cannot be used"):
        state["training"].load_state_dict(saved)
