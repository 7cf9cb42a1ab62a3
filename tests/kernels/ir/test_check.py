"""A forged region is refused before any kernel runs."""

import json
import random

import pytest
import torch
from kernel_programs import Case, region_of

from sparsefx.kernels.ir.check import check


def made():
    case = Case(images=1)
    _, weight, bias = case.tensors()
    region = region_of(case, weight, bias, residual=1)
    return json.loads(region.program), list(region.tensors()), region.layers


def refused(program, tensors, layers, match):
    with pytest.raises(ValueError, match=match):
        check(json.dumps(program), tensors, layers)


def test_what_is_made_is_valid():
    program, tensors, layers = made()
    check(json.dumps(program), tensors, layers)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("source", 7, "reads what is not there"),
        ("source", -1, "reads what is not there"),
        ("residual", 2, "reads what is not there"),
        ("weights", 1, "weights"),
        ("weights", [0, 0, -4], "weights"),
        ("weights", [0, 0, 10**12], "weights"),
        ("weights", [1, 0, 0], "rows"),
        ("weights", [0, 1, 0], "nonzeros"),
        ("weights", [0, 0, 1], "biases"),
        ("in_channels", 2, "outside of the window|shape"),
        ("out_channels", 400, "rows|biases"),
        ("segments", 10**9, "sizes|rows"),
        ("nonzeros", 3, "number of nonzeros"),
        ("kernel", [1, 1, 1], "outside of the window|shape"),
        ("kernel", [1, 3], "kernel"),
        ("kernel", [1, 10**5, 10**5], "window"),
        ("stride", [0, 1, 1], "stride"),
        ("padding", [0, -1, 0], "padding"),
        ("dilation", [1, 1.5, 1], "dilation"),
        ("bounds", ["a", "b"], "bounds"),
        ("kind", "Mystery", "no program"),
    ],
)
def test_a_wrong_field(field, value, match):
    program, tensors, layers = made()
    program["instructions"][0][field] = value
    refused(program, tensors, layers, match)


@pytest.mark.parametrize(
    ("index", "change", "match"),
    [
        (0, lambda rows: rows + 1, "nonzeros"),
        (0, lambda rows: rows[:-1], "rows"),
        (0, lambda rows: torch.cat([rows[:1], rows[-1:] * 2, rows[2:]]), "ascend"),
        (0, lambda rows: rows.long(), "indices"),
        (1, lambda codes: codes + (1 << 10), "outside of the window"),
        (1, lambda codes: -codes - 1, "outside of the window"),
        (1, lambda codes: codes[:-1], "nonzeros"),
        (1, lambda codes: codes.int(), "indices"),
        (2, lambda values: values[:-1], "biases"),
        (2, lambda values: values.int(), "values"),
        (2, lambda values: values[:, None], "dimension"),
    ],
)
def test_wrong_tensors(index, change, match):
    program, tensors, layers = made()
    tensors[index] = change(tensors[index])
    refused(program, tensors, layers, match)


@pytest.mark.parametrize("layers", [(), ("layer",), ((3, (4, 3, 3, 3), 1),), (("layer", (4, 3, 3), 1),)])
def test_wrong_layers(layers):
    program, tensors, _ = made()
    refused(program, tensors, layers, "layer")


def test_outputs_and_inputs():
    program, tensors, layers = made()
    refused({**program, "outputs": [3]}, tensors, layers, "outputs")
    refused({**program, "outputs": []}, tensors, layers, "outputs")
    refused({**program, "flat": [5]}, tensors, layers, "flattens")
    refused({**program, "flat": None}, tensors, layers, "no program")
    refused({**program, "inputs": 0}, tensors, layers, "inputs")
    refused({**program, "dims": 4}, tensors, layers, "dimension")
    refused([], tensors, layers, "no program")
    refused({}, tensors, layers, "no program")


def test_random_damage_is_refused_or_harmless():
    """What passes the check runs on an input, or refuses it."""
    from sparsefx.kernels.runtime.operators import region

    chance = random.Random(0)
    values = [0, 1, 2, 3, -1, 7, 10**6, 0.5, None, "x", [], [1, 1, 1], [2, 2, 2], True]
    survived = 0
    for _ in range(600):
        program, tensors, layers = made()
        target = chance.choice([program, program["instructions"][0]])
        target[chance.choice(sorted(target))] = chance.choice(values)
        try:
            check(json.dumps(program), tensors, layers)
        except ValueError:
            continue
        survived += 1
        inputs = [torch.randn(1, 3, 6, 5), torch.randn(1, 4, 6, 5)]
        try:
            region(inputs[: program["inputs"]], tensors, json.dumps(program))
        except ValueError:
            continue
    assert survived > 10
