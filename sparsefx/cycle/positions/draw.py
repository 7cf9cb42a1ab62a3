"""Random choice without replacement, the same wherever a layer is and however it is sharded."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.cycle.positions.block import Block
from sparsefx.cycle.positions.layer_state import LayerState


def draw(layer: LayerState, candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Choose ``count`` of the candidates of a layer, uniformly without replacement.

    Args:
        layer: the layer, mask of shape ``S``.
        candidates: bool, shape ``S``; at least ``count`` in the full layer.
        count: how many positions to choose.
        generator: a CPU generator in the same state in every process; torch's global one if None.

    Returns:
        Bool tensor of shape ``S``.
    """
    available = layer.count(candidates)
    block = layer.block or Block.full(layer.mask)
    if 4 * count <= available and 4 * available >= layer.numel:
        return _draw_few(block, candidates, count, generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    scores = _uniform(block.positions(candidates.device), seed).view(candidates.shape)
    return layer.select_largest(scores, candidates, count)


def _draw_few(block: Block, candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw few of many: draw positions until enough are candidates, each taken once.

    As many are drawn at a time as are missing, so none that was drawn is ever left out and no set of
    positions is likelier than another.
    """
    flat, chosen = candidates.flatten(), torch.zeros_like(candidates).flatten()
    missing = count
    while missing:
        drawn = torch.randint(block.shape.numel(), (missing,), generator=generator).to(flat.device)
        _, local = block.find(drawn)
        chosen[local[flat[local]]] = True
        missing = count - int(block.sum(chosen.sum()))
    return chosen.view(candidates.shape)


def _uniform(positions: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for each position, float64, that follows from the position and the seed alone.

    SplitMix64 (Steele, Lea & Flood 2014), whose 64-bit words are torch's signed ones here.
    """
    words = positions * _signed(0x9E3779B97F4A7C15) + seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ _shifted(words, shift)) * _signed(factor)
    words = words ^ _shifted(words, 31)
    return _shifted(words, 11).double() * 2.0**-53


def _shifted(words: Tensor, by: int) -> Tensor:
    """The words shifted to the right, zeros coming in from the left."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
