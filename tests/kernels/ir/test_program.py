"""A region's program is a value: frozen, hashable, the same when it is read back, and read once."""

import dataclasses

import pytest
import torch
from kernel_programs import Case, region_of

from sparsefx.kernels.ir.program import Concatenate, Mean, Pointwise, Pool, RegionProgram, read_program


def program():
    pool = Pool(0, True, (1, 2, 2), (1, 2, 2), (0, 0, 0))
    items = (Case().instruction(), pool, Pointwise(1, 0, "add"), Concatenate((0, 1)), Mean(2))
    return RegionProgram(2, 1, items, (4, 5), (5,))


def test_is_the_same_when_it_is_read_back():
    made, again = program(), read_program(program().text)
    assert again == made
    assert hash(again) == hash(made)
    assert again.text == made.text
    assert {made: 1}[again] == 1


def test_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        program().dims = 3  # type: ignore[misc]


def test_what_differs_is_not_equal():
    for change in ({"dims": 1}, {"inputs": 2}, {"outputs": (5,)}, {"flat": ()}, {"instructions": ()}):
        assert dataclasses.replace(program(), **change) != program()


@torch.no_grad()
def test_is_read_once_for_all_sizes():
    case = Case(images=3, size=(7, 6), seed=123)
    x, weight, bias = case.tensors()
    region = region_of(case, weight, bias)
    before = read_program.cache_info().misses
    for images in (1, 2, 3):
        region(x[:images])
    assert read_program.cache_info().misses == before + 1
