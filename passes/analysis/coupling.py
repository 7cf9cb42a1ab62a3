"""Which slices can be removed together: the smallest keep sets that satisfy every operation's couplings.

A hidden layer of four channels, of which the next layer does not read the second and the fourth:

>>> from torch import nn
>>> from sparsefx.passes.analysis.propagate import forward_facts, live_elements
>>> from sparsefx.passes.graph.record import record
>>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
>>> net[2].weight.data[:, [1, 3]] = 0
>>> program = record(torch.fx.symbolic_trace(net), [(torch.randn(1, 3),)])
>>> live = live_elements(program, forward_facts(program))
>>> keep_sets = find_kept(program, live)
>>> for value in program.constants:
...     print(value.names[0], *[indices.int().tolist() for indices in keep_sets[value]])
0.weight [1, 0, 1, 0] [1, 1, 1]
0.bias [1, 0, 1, 0]
2.weight [1, 1] [1, 0, 1, 0]
2.bias [1, 1]

It starts at the dead columns of ``2.weight``. The ReLU couples its operand with its result. A product
couples the rows of its weight with its result, and the columns with its operand. So the rows of
``0.weight`` can go with the columns of ``2.weight``: both layers are cut to two hidden channels. If a
third layer read the second channel, the couplings would keep it everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sparsefx.passes.analysis.domains.keep_sets import KeepSets
from sparsefx.passes.analysis.ops import operation_of
from sparsefx.passes.graph.program import Call, Program, Value


def find_kept(
    program: Program,
    live: Mapping[Value, Tensor],
    *,
    pinned: Iterable[tuple[Value, int | None]] = (),
    align: int = 1,
    round_groups: bool = False,
) -> KeepSets:
    """The least that must stay of every value.

    Args:
        program: the recorded graph.
        live: the live elements of each value.
        pinned: dimensions of values that must stay whole (None: all of the value's), beside those of
            the graph's inputs and outputs.
        align: widths of convolutions and linear layers are rounded up to a multiple of this with
            removable indices, where there are enough.
        round_groups: give the groups of convolutions convenient widths (:meth:`KeepSets.group_width`).
    """
    kept = KeepSets(live, round_groups)
    for value, elements in live.items():
        for dim in range(len(value.shape)):
            others = [d for d in range(len(value.shape)) if d != dim]
            kept.keep(value, dim, elements.any(others) if others else elements)
        kept.keep_all(value, value.varying)
    kept.because("the model takes or returns them")
    for value in (*program.inputs, *program.outputs):
        kept.keep_all(value)
    kept.because("a size that cannot be rewritten counts them")
    for value, pinned_dim in pinned:
        kept.keep_all(value, None if pinned_dim is None else [pinned_dim])
    couplings = _Couplings(program, kept)
    couplings.hold(program.calls)
    _keep_one_of_each(program, kept, couplings)
    if align > 1:
        _align(program, kept, couplings, align)
    return kept


class _Couplings:
    """Every operation's coupling, held again wherever one of its values changes."""

    def __init__(self, program: Program, kept: KeepSets) -> None:
        self._kept = kept
        self._touching: dict[Value, list[Call]] = {}
        for call in program.calls:
            for value in {*call.inputs, *call.outputs}:
                self._touching.setdefault(value, []).append(call)

    def hold(self, calls: Iterable[Call] = ()) -> None:
        """Keep more until every coupling holds, beginning with some calls and with what changed.

        A call comes again only after an index more was kept of one of its values, and none is given up: it
        is asked at most once more than its values have indices.
        """
        waiting = dict.fromkeys(calls)
        while True:
            for value in self._kept.take_changed():
                waiting.update(dict.fromkeys(self._touching.get(value, ())))
            if not waiting:
                return
            call = next(iter(waiting))
            del waiting[call]
            self._kept.because(call)
            operation_of(call).couple(call, self._kept)


def _keep_one_of_each(program: Program, kept: KeepSets, couplings: _Couplings) -> None:
    """Keep an index of a dimension that would vanish: no tensor may lose its last channel."""
    for value in program.values():
        for dim, size in enumerate(value.shape):
            if size and not bool(kept.of(value, dim).any()):
                kept.because("no tensor may lose its last channel")
                kept.keep(value, dim, torch.arange(size) == 0)
                couplings.hold()


def _align(program: Program, kept: KeepSets, couplings: _Couplings, align: int) -> None:
    """Keep removable indices of the layers' widths until each is a multiple, or full."""
    widths = [(value, dim) for value in program.constants if len(value.shape) > 1 for dim in (0, 1)]
    missing = True
    while missing:  # each turn but the last keeps more
        missing = False
        for value, dim in widths:
            indices = kept.of(value, dim)
            wanted = min(len(indices), -(-int(indices.sum()) // align) * align) - int(indices.sum())
            if wanted:
                kept.because("align= rounds the width up")
                removed = (~indices).nonzero().flatten()[:wanted]
                kept.keep(value, dim, torch.zeros_like(indices).index_fill(0, removed, True))
                couplings.hold()
                missing = True
