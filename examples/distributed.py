"""Train a sparse network on several processes, and export it.

    torchrun --nproc-per-node 2 examples/distributed.py
    torchrun --nproc-per-node 2 examples/distributed.py --shard --checkpoints runs/digits

DistributedDataParallel, or with ``--shard`` FSDP2, on scikit-learn's bundled digits; on GPUs where there are
some. With ``--checkpoints FOLDER`` the state is saved after every epoch, and a run that was killed goes on
from the last one when it is started again, also on another number of processes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn import datasets
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import sparsefx


def network() -> nn.Module:
    """Two convolutions and a linear layer, for images of 8x8."""
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )


def digits(device: torch.device) -> tuple[TensorDataset, Tensor, Tensor]:
    """The first 1,297 to train on, the last 500 to test."""
    found = datasets.load_digits()
    x = torch.tensor(found.images, dtype=torch.float32, device=device).unsqueeze(1).div(8).sub(1)
    y = torch.tensor(found.target, dtype=torch.int64, device=device)
    return TensorDataset(x[:1297], y[:1297]), x[1297:], y[1297:]


def sparse_network() -> nn.Module:
    """The same on every rank: masks and weights come from generators that are seeded alike."""
    torch.manual_seed(0)
    return sparsefx.sparsify(network(), density=0.1)


def train(options: argparse.Namespace, device: torch.device) -> nn.Module:
    """Train on every process; the model as it was wrapped."""
    model = sparse_network().to(device)
    if options.shard:
        fully_shard(model)  # in place
    else:
        model = DistributedDataParallel(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sparsefx.SparseMomentum(sgd, model, cycles=options.epochs)
    state = {"training": sparsefx.TrainingState(model, optimizer)}

    dataset = digits(device)[0]
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(dataset, seed=0)
    loader = DataLoader(dataset, batch_size=64 // dist.get_world_size(), sampler=sampler)
    first = restore(options.checkpoints, state)
    for epoch in range(first, options.epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        record = optimizer.cycle()
        if dist.get_rank() == 0:
            moved, active = (sum(getattr(layer, n) for layer in record.layers) for n in ("grown", "active"))
            print(f"epoch {epoch + 1}: {moved} of {active} weights moved")
        if options.checkpoints:
            dcp.save(state, checkpoint_id=options.checkpoints / str(epoch + 1))
    return model


def restore(folder: Path | None, state: dict[str, sparsefx.TrainingState]) -> int:
    """Load the last whole checkpoint, if there is one; the number of epochs it has done."""
    found = folder.glob("*/.metadata") if folder else []  # written last
    done = max((int(path.parent.name) for path in found), default=0)
    if folder and done:
        dcp.load(state, checkpoint_id=folder / str(done))
    return done


def main() -> None:
    """Train, gather the weights on the first rank, export there."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--shard", action="store_true", help="shard the weights over processes (FSDP2)")
    parser.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="save there, resume from there")
    options = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group()
    model = train(options, device)
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        sparse = sparse_network()
        sparse.load_state_dict(full)
        _, x, y = digits(torch.device("cpu"))
        compact = sparsefx.export(sparse, (x[:2],))
        accuracy = float((compact(x).argmax(1) == y).float().mean())
        before, after = (sum(p.numel() for p in m.parameters()) for m in (sparse, compact))
        print(f"accuracy {100 * accuracy:.1f}%; exported: {before:,} parameters before, {after:,} after")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
