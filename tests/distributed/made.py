"""A small problem that can be trained on its full batch or in parts of it, in float64."""

import torch
from torch import nn
from torch.nn import functional as F

import sparsefx


class Net(nn.Module):
    """Convolutions, a linear layer, and one layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 7)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.body(x)) + x
        x = F.relu(self.body(x)) + x
        return self.head(x.mean((2, 3)))


def model(density=0.3, **options):
    torch.manual_seed(3)
    return sparsefx.sparsify(Net().double(), density=density, **options)


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def plain_sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


def adam(net):
    return torch.optim.AdamW(net.parameters(), lr=0.01)


def batch(step, size=8):
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 7, (size,), generator=generator)


def part(tensor, rank, world):
    return tensor.chunk(world)[rank]


def train(net, optimizer, steps, rank=0, world=1, first=0, every=2):
    """Some steps with a cycle after every second; the masks after each cycle."""
    seen = []
    for step in range(first, first + steps):
        x, y = (part(tensor, rank, world) for tensor in batch(step))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        if (step + 1) % every == 0:
            optimizer.cycle()
            seen.append(masks(net))
    return seen


def masks(net):
    """Full copies of all masks, by layer."""
    return {layer.name: full(layer.mask).clone() for layer in sparsefx.masked_weights(net)}


def weights(net):
    return {layer.name: full(layer.weight.detach()).clone() for layer in sparsefx.masked_weights(net)}


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_same_masks(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name
