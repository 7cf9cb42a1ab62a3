"""Every method of the table trains by sparse kernels to the masks that it finds without, or says why not."""

import pytest
import torch
from methods.test_conformance import NAMES, row
from torch import nn
from torch.nn import functional as F

from sparsefx import METHODS, Training, masked_weights
from sparsefx.errors import ArgumentError

pytest.importorskip("llvmlite")

STEPS, EPOCH = 12, 3
QUICK = {"sparse-momentum", "rigl", "granet", "top-kast", "lottery-ticket"}
REFUSED = {name for name in NAMES if METHODS[name].penalty is not None}
ROWS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
    if name not in REFUSED
]


def start(name, kernels):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))
    generator = torch.Generator().manual_seed(5)
    return Training(
        row(name),
        network,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4),
        steps=STEPS,
        epoch_steps=EPOCH,
        batches=[(torch.randn(8, 12, generator=generator), torch.arange(8) % 4) for _ in range(2)],
        samples=64,
        seed=0,
        kernels=kernels,
        example_inputs=(torch.ones(8, 12),),
    )


def trained(name, kernels):
    """The model after all rounds, its masks after every step, and in how many steps weights were packed."""
    training, masks, packed = start(name, kernels), [], 0
    generator = torch.Generator().manual_seed(1)
    for _ in training.rounds():
        for _ in range(training.steps):
            x, y = torch.randn(8, 12, generator=generator), torch.randint(4, (8,), generator=generator)
            training.optimizer.zero_grad()
            F.cross_entropy(training.model(x), y).backward()
            packed += training.model.get_parameter("0.weight").dim() == 1
            training.optimizer.step()
            found = (masked.mask.clone() for masked in masked_weights(training.model))
            masks.append(dict(enumerate(found)))
    return training.finish(), masks, packed


@pytest.mark.parametrize("name", ROWS)
def test_masks_are_those_of_training_without_acceleration(name):
    """``window="auto"`` covers all steps where momentum matters, in so short a training."""
    (plain, expected, _), (fast, found, packed) = (trained(name, kernels) for kernels in ("dense", "sparse"))
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert all(torch.equal(one[layer], other[layer]) for layer in other), step
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[key], tensor, rtol=1e-4, atol=1e-5, msg=key)
    reads_inactive = METHODS[name].weights.memory is not None or METHODS[name].weights.gradient_terms
    assert packed or reads_inactive


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_methods_with_a_regulariser_say_why_not(name):
    with pytest.raises(ArgumentError, match=r"regulariser of method .* computes weights anew"):
        start(name, "sparse")
