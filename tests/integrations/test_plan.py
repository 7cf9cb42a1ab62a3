"""When there are cycles, and which methods need nothing but an optimizer."""

import pytest
import torch
from helpers import masked_mlp

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.integrations import sparse_optimizer
from sparsefx.integrations.plan import Plan, told_by_trainer
from sparsefx.methods import METHODS

RUNNABLE = [
    "static",
    "sparse-momentum",
    "set",
    "dsr",
    "deep-r",
    "rigl",
    "snfs-erk",
    "set-itop",
    "rigl-itop",
    "mest",
]


def due(schedule, steps):
    return [step for step in range(1, steps + 1) if schedule.is_due(step)]


@pytest.mark.parametrize(
    ("changes", "steps", "epoch_steps", "expected"),
    [
        ({}, 60, 5, [*range(5, 60, 5)]),  # each epoch but the last
        ({}, 45, 5, [*range(5, 45, 5)]),  # nine epochs: every tenth of it, rounded up, is an epoch again
        ({}, 300, 100, [*range(30, 300, 30)]),
        ({}, 5, 1, [1, 2, 3, 4]),
        ({"every": "epoch"}, 300, 100, [100, 200]),
        ({"every": 7}, 30, 3, [7, 14, 21, 28]),
        ({"every": 10, "last": 0.5}, 100, 10, [10, 20, 30, 40]),
        ({"epochs": 2}, 100, 10, [20, 40, 60, 80]),
    ],
)
def test_when(changes, steps, epoch_steps, expected):
    assert due(Plan.of("sparse-momentum", changes).schedule(steps, epoch_steps), steps) == expected


def test_a_row_of_ones_own_is_taken_at_its_word():
    row = sparsefx.method("sparse-momentum")
    assert due(Plan.of(row, {}).schedule(300, 100), 300) == [100, 200]


@pytest.mark.parametrize("name", METHODS)
def test_methods_run_or_say_what_they_need(name):
    model = masked_mlp(8, 16, 4, density=0.5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    changes = {} if METHODS[name].timing is None else {"every": 2, "last": 1.0}
    if name not in RUNNABLE:
        with pytest.raises(ArgumentError, match=f"method='{name}' .*; run it by sparsefx.Training"):
            sparse_optimizer(sgd, model, name, steps=10, epoch_steps=5, **changes)
        return
    optimizer = sparse_optimizer(sgd, model, name, steps=10, epoch_steps=5, **changes)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    expected = [] if name == "static" else [2, 4, 6, 8, *([10] if METHODS[name].timing.at_last else [])]
    assert [record.step for record in optimizer.history] == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"steps": 0, "epoch_steps": 1}, "steps=0 is not a whole number of at least 1"),
        ({"steps": 5, "epoch_steps": 2.0}, "epoch_steps=2.0 is not"),
        ({"steps": 5, "epoch_steps": 5, "every": "epoch"}, "every='epoch': .* no cycle in 5 optimizer steps"),
        ({"steps": 50, "epoch_steps": 5, "every": 50}, "every=50: .* set every= to fewer steps"),
        ({"steps": 50, "epoch_steps": 5, "at_start": True}, "before the first step, and that takes more"),
        ({"steps": 50, "epoch_steps": 5, "evry": 5}, "method option='evry' is not known"),
        ({"steps": 50, "epoch_steps": 5, "method": "rigel"}, "did you mean 'rigl'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    model = masked_mlp(4, 4)
    with pytest.raises(ArgumentError, match=message):
        sparse_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, **call)


def test_a_dense_model_is_refused():
    model = torch.nn.Linear(3, 3)
    with pytest.raises(ArgumentError, match=r"no masked weights; pass it through sparsefx.sparsify first"):
        sparse_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, steps=20, epoch_steps=1)


def test_a_schedule_that_was_not_told_of_the_beginning():
    schedule = told_by_trainer()
    with pytest.raises(ArgumentError, match=r"leave it among the trainer's callbacks.*TrainingState"):
        schedule.is_due(1)
    schedule.begin(Plan.of("sparse-momentum", {}).schedule(20, 2))
    assert due(schedule, 20) == [*range(2, 20, 2)]
    assert schedule.progress(10) == 0.5
