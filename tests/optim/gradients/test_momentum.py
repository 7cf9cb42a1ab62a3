"""Momentum as read from each optimizer's own state."""

from __future__ import annotations

import pytest
import torch

from sparsefx.optim.gradients.momentum import finite, keeps_momentum, read_momentum

OPTIM = torch.optim


def stepped(make):
    """A parameter after two steps with gradients 1 and -2 times (1, 2, 3), and its optimizer."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = make([weight])
    for scale in (1.0, -2.0):
        weight.grad = scale * torch.tensor([1.0, 2.0, 3.0])
        optimizer.step()
    return optimizer, weight


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_reads_its_buffer(nesterov):
    optimizer, weight = stepped(lambda p: OPTIM.SGD(p, lr=0.1, momentum=0.9, nesterov=nesterov))
    assert read_momentum(optimizer, weight) == pytest.approx(torch.tensor([-1.1, -2.2, -3.3]))
    assert (
        read_momentum(optimizer, weight).data_ptr() == optimizer.state[weight]["momentum_buffer"].data_ptr()
    )


def test_rmsprop_with_momentum_reads_its_buffer():
    optimizer, weight = stepped(lambda p: OPTIM.RMSprop(p, lr=0.1, momentum=0.9))
    assert torch.equal(read_momentum(optimizer, weight), optimizer.state[weight]["momentum_buffer"])


@pytest.mark.parametrize("adam", [OPTIM.Adam, OPTIM.AdamW, OPTIM.NAdam, OPTIM.RAdam])
def test_adam_family_by_hand(adam):
    optimizer, weight = stepped(lambda p: adam(p, lr=0.1, betas=(0.9, 0.99), eps=0.5))
    base = torch.tensor([1.0, 2.0, 3.0])
    average, square = (0.09 - 0.2) * base, (0.0099 + 0.04) * base**2
    assert read_momentum(optimizer, weight) == pytest.approx(average / (square.sqrt() + 0.5))


def test_adamax_divides_by_the_infinity_norm():
    optimizer, weight = stepped(lambda p: OPTIM.Adamax(p, lr=0.1, betas=(0.9, 0.99), eps=0.5))
    state = optimizer.state[weight]
    assert read_momentum(optimizer, weight) == pytest.approx(state["exp_avg"] / (state["exp_inf"] + 0.5))


def test_each_group_has_its_own_eps():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = OPTIM.Adam(
        [{"params": [first], "eps": 1.0}, {"params": [second], "eps": 3.0}], betas=(0.0, 0.0)
    )
    first.grad, second.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    assert read_momentum(optimizer, first).tolist() == [0.5, 0.5]
    assert read_momentum(optimizer, second).tolist() == [0.25, 0.25]


def test_a_plain_average_is_read_as_it_is():
    class Lion(OPTIM.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self):
            for weight in self.param_groups[0]["params"]:
                self.state[weight]["exp_avg"] = weight.grad.clone()

    optimizer, weight = stepped(Lion)
    assert read_momentum(optimizer, weight).tolist() == [-2.0, -4.0, -6.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: OPTIM.SGD(p, lr=0.1),
        lambda p: OPTIM.RMSprop(p, lr=0.1),
        lambda p: OPTIM.Adagrad(p, lr=0.1),
        lambda p: OPTIM.Adadelta(p, lr=0.1),
        lambda p: OPTIM.Rprop(p, lr=0.1),
    ],
)
def test_optimizers_that_keep_none(make):
    optimizer, weight = stepped(make)
    assert read_momentum(optimizer, weight) is None
    assert not keeps_momentum(optimizer, weight)


def test_before_the_first_step_there_is_none_and_no_state_is_made():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = OPTIM.SGD([weight], lr=0.1, momentum=0.9)
    assert read_momentum(optimizer, weight) is None
    assert weight not in optimizer.state


def test_what_is_not_finite_counts_as_no_momentum():
    optimizer, weight = stepped(lambda p: OPTIM.SGD(p, lr=0.1, momentum=0.9))
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([float("nan"), float("-inf"), 2.0])
    assert read_momentum(optimizer, weight).tolist() == [0.0, 0.0, 2.0]
    assert optimizer.state[weight]["momentum_buffer"].isnan().any()


def test_half_precision_is_read_in_float32():
    values = torch.tensor([1.0, float("inf")], dtype=torch.bfloat16)
    assert finite(values).dtype == torch.float32
    assert finite(values).tolist() == [1.0, 0.0]
    assert finite(values.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_values_whose_sum_is_not_stay(dtype):
    large = torch.full((4, 4), torch.finfo(dtype).max, dtype=dtype)
    assert torch.equal(finite(large), large.to(torch.promote_types(dtype, torch.float32)))
    wrong = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    assert finite(wrong).tolist() == [1, 0, 0, 0]
