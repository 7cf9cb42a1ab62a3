"""Which sizes of its inputs a model lets vary, and over what range: found by trial runs.

A model of images ``[N, 3, 224, 224]`` is run at ``[2, 3, 112, 96]``. Where that is refused, height and width
change together, and then one by one. Bins ``[N, T, 40]`` before two poolings and a linear layer may change
to 43, but not to 44: such a dimension is *limited*. Its farthest size is taken, at which every size that
follows from it differs, and others are refused when the graph runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsefx.passes.running.suppress_stderr import suppress_stderr
from sparsefx.passes.running.trials import Check, Place, Trials, groups_of, resized

_NewSizes = dict[Place, int]
_Change = Callable[[int], int]

_LARGE = 128  # sizes from here on are halved, which is cheap to run; smaller ones are doubled
_LARGE_BATCH = 8
_SMALL = 4  # below this doubled sizes may be alike after a stride
_FEW = 6  # dimensions of one size, of which every pair is tried


def at_other_sizes(run: Callable[[Any], Any], inputs: Any) -> Trials:
    """The inputs, and copies of them in other sizes that the model takes too.

    Dimensions of equal size change each by itself first, to sizes that differ from each other. Where that is
    refused, they usually mean the same (the steps of two sequences), and change together; some of them
    together, where others are of that size by chance. What no trial run accepts is taken as fixed.

    Args:
        run: calls the model, and raises for sizes that it does not accept; returns its outputs.
        inputs: the example inputs: a tuple, or arguments by name.
    """
    if not any(isinstance(leaf, Tensor) and leaf.dim() for leaf in pytree.tree_leaves(inputs)):
        return Trials([inputs])
    try:
        outputs = run(inputs)
    except Exception:  # a part that cannot be called twice in the same way
        return Trials([inputs])
    return _Search(run, inputs, outputs).trials()


@dataclass(frozen=True)
class _Move:
    """Dimensions that change together.

    Attributes:
        places: the dimensions.
        size: the present size of the first.
        step: what divides all sizes that were seen to be accepted.
        limits: the least and the largest change, where they are near.
    """

    places: tuple[Place, ...]
    size: int
    step: int
    limits: tuple[int, int] | None = None

    @property
    def is_batch(self) -> bool:
        return all(dim == 0 for _, dim in self.places)


class _Search:
    def __init__(self, run: Callable[[Any], Any], inputs: Any, outputs: Any) -> None:
        self.run, self.inputs, self.before = run, inputs, _shapes(outputs)
        self.leaves, self.spec = pytree.tree_flatten(inputs)
        self.joint: _NewSizes = {}  # accepted all at once
        self.alone: list[_NewSizes] = []
        self.moves: list[_Move] = []
        self._refused = set[frozenset[tuple[Place, int]]]()

    def trials(self) -> Trials:
        groups = sorted(groups_of(self.inputs), key=self._cost)
        for group in groups:
            if not self._move_apart(group):
                self._move_some(group)
        for pair in itertools.combinations(groups, 2):
            self._move_pair(*pair)
        changed = [self.joint] if self.joint else []
        limits = {
            place: (self._size(place) + move.limits[0], self._size(place) + move.limits[1])
            for move in self.moves
            if move.limits is not None
            for place in move.places
        }
        inputs = [self.inputs, *(self._at(sizes) for sizes in (*changed, *self.alone))]
        return Trials(inputs, list(self._checks()), limits)

    def _cost(self, group: tuple[Place, ...]) -> tuple[bool, int]:
        """Large sizes come first, which are made smaller, and the batch last."""
        return group[0][1] == 0, -self._size(group[0])

    def _left(self, places: Sequence[Place]) -> tuple[Place, ...]:
        """The places that do not vary yet."""
        moved = {place for move in self.moves for place in move.places}
        moved |= {place for sizes in self.alone for place in sizes}
        return tuple(place for place in places if place not in moved)

    def _move_apart(self, group: tuple[Place, ...]) -> bool:
        """Change each of some dimensions of one size to a size of its own; whether that is accepted."""
        size = self._size(group[0])
        if len(group) == 1 or size == 1:
            return False
        sizes = {place: _first_change(turn, place[1] == 0)(size) for turn, place in enumerate(group)}
        if len(set(sizes.values())) < len(group) or not self._takes(self.joint | sizes):
            return False
        self.joint |= sizes
        self.moves += [_Move((place,), size, math.gcd(size, new)) for place, new in sizes.items()]
        return True

    def _move_some(self, group: tuple[Place, ...]) -> None:
        """Change as many dimensions of a group as the model lets change, together or by themselves."""
        for places in _subsets(group):
            if len(self._left(places)) == len(places) and self._move(places):
                self._split(places)

    def _move_pair(self, one: tuple[Place, ...], other: tuple[Place, ...]) -> None:
        """Change lengths that go together; by themselves they stay, or one of them changes a little only."""
        rest = [self._left(group) for group in (one, other)]
        near = [self._near(group) for group in (one, other)]
        places = (*(rest[0] or near[0]), *(rest[1] or near[1]))
        if not any(rest) or not all(rest[side] or near[side] for side in (0, 1)):
            return
        if self._move(places, far=not all(rest)):
            self._split(places)

    def _near(self, places: Sequence[Place]) -> tuple[Place, ...]:
        """The places that vary a little only."""
        near = {place for move in self.moves if move.limits is not None for place in move.places}
        return tuple(place for place in places if place in near)

    def _move(self, places: tuple[Place, ...], far: bool = False) -> bool:
        """Change dimensions in the first way that the model takes, with all that changed before or alone."""
        turn = sum(move.size == self._size(places[0]) for move in self.moves)
        changes = list(_changes(turn, all(dim == 0 for _, dim in places)))[: _FAR + 1 if far else None]
        for number, change in enumerate(changes):
            sizes = {place: change(self._size(place)) for place in places}
            if self._takes(self.joint | sizes):
                self.joint |= sizes
                self.moves = [move for move in self.moves if not set(move.places) & set(places)]
                self.moves.append(self._moved(places, is_far=number <= _FAR))
                return True
        for change in changes[:1] if self.joint and not far else ():
            sizes = {place: change(self._size(place)) for place in places}
            if self._takes(sizes):
                self.alone.append(sizes)
                return True
        return False

    def _moved(self, places: tuple[Place, ...], is_far: bool) -> _Move:
        """The move that was just accepted; one that was not far is made as far as it goes."""
        size = self._size(places[0])
        move = _Move(places, size, math.gcd(size, self.joint[places[0]]))
        if is_far or size == 1:
            return move
        least, most = -self._reach(places, -1), self._reach(places, 1)
        if least == most:  # not by one, so perhaps in steps
            return move
        farthest = most if most >= -least else least
        self.joint |= {place: self._size(place) + farthest for place in places}
        return replace(move, step=1, limits=(least, most))

    def _reach(self, places: tuple[Place, ...], sign: int) -> int:
        """By how much dimensions can change in one direction, all that is less included."""
        reach, step = 0, 1
        while self._takes_by(places, sign * (reach + step)):
            reach, step = reach + step, 2 * step
        while step > 1:
            step //= 2
            reach += step if self._takes_by(places, sign * (reach + step)) else 0
        return reach

    def _takes_by(self, places: tuple[Place, ...], amount: int) -> bool:
        sizes = {place: self._size(place) + amount for place in places}
        return all(size > 0 for size in sizes.values()) and self._takes(self.joint | sizes)

    def _split(self, places: tuple[Place, ...]) -> None:
        """See whether some of the dimensions that change together can also do so without the others."""
        size = self._size(places[0])
        if len(places) == 1 or size == 1 or any(set(places) & sizes.keys() for sizes in self.alone):
            return
        for some in _subsets(places)[1:]:
            whole = next(move for move in self.moves if some[0] in move.places)
            if whole.limits or len(some) == len(whole.places) or not set(some) <= set(whole.places):
                continue
            turn = sum(move.size == size for move in self.moves)
            sizes = {place: _first_change(turn, place[1] == 0)(self._size(place)) for place in some}
            if all(sizes[place] != self.joint[place] for place in some) and self._takes(self.joint | sizes):
                self.joint |= sizes
                rest = tuple(place for place in whole.places if place not in some)
                self.moves[self.moves.index(whole)] = replace(whole, places=rest)
                self.moves.append(_Move(some, size, math.gcd(size, sizes[some[0]])))

    def _checks(self) -> Iterator[Check]:
        """Calls at other sizes than those of the examples: small and large ones in turn, and 1."""
        seen: list[_NewSizes] = [{}, self.joint]
        for sizes_of in (_alternating(0), _alternating(1), _ones(True), _ones(False)):
            amounts = [(move, sizes_of(number, move)) for number, move in enumerate(self.moves)]
            for moved_to in (self._moved_to, self._moved_in_steps):
                moved = [pair for move, new in amounts for pair in moved_to(move, new)]
                sizes = {place: size for place, size in moved if size != self._size(place)}
                if sizes in seen:
                    break
                seen.append(sizes)
                outputs = self._result(sizes)
                if outputs is not None:
                    yield Check(self._at(sizes), outputs[0])
                    break

    def _moved_to(self, move: _Move, new: int) -> Iterator[tuple[Place, int]]:
        for place in move.places:
            yield place, max(1, self._size(place) + new - move.size)

    def _moved_in_steps(self, move: _Move, new: int) -> Iterator[tuple[Place, int]]:
        """To a size that has the powers of 2 in it that all sizes which were seen to be accepted have."""
        step = math.gcd(move.step, 32)
        steps = max(1, round(new / step))
        for place in move.places:
            yield place, max(1, self._size(place) * steps * step // move.size)

    def _size(self, place: Place) -> int:
        number, dim = place
        size: int = self.leaves[number].shape[dim]
        return size

    def _takes(self, sizes: _NewSizes) -> bool:
        if any(size < min(self._size(place), 2) for place, size in sizes.items()):
            return False  # a size of 1 would be broadcast
        key = frozenset(sizes.items())
        if key not in self._refused and self._result(sizes) is not None:
            return True
        self._refused.add(key)
        return False

    def _result(self, sizes: _NewSizes) -> tuple[Any] | None:
        """What the model returns at other sizes; None where it refuses them."""
        other = self._at(sizes)
        try:
            with suppress_stderr():
                outputs = self.run(other)
        except Exception:  # the model refuses a size in its own way
            return None
        lost = _loses_samples(_shapes(self.inputs), self.before, _shapes(other), _shapes(outputs))
        return None if lost else (outputs,)

    def _at(self, sizes: _NewSizes) -> Any:
        return resized(self.inputs, sizes)


def _subsets(group: tuple[Place, ...]) -> list[tuple[Place, ...]]:
    """Parts of a group that may belong together, the whole first."""
    by_dim = [tuple(place for place in group if place[1] == dim) for dim in sorted({d for _, d in group})]
    by_leaf = [tuple(place for place in group if place[0] == leaf) for leaf in sorted({n for n, _ in group})]
    found = [group, *by_dim, *by_leaf, *((place,) for place in group)]
    if len(group) <= _FEW:
        found += itertools.combinations(group, 2)
        found += itertools.combinations(group, len(group) - 1)
    return list(dict.fromkeys(places for places in found if places))


def _changes(turn: int, is_batch: bool) -> Iterator[_Change]:
    """Ways to change a size; those up to ``_FAR`` change every size that follows from it."""
    yield _first_change(turn, is_batch)
    yield lambda size: 2 * size
    yield lambda size: size // 2
    yield lambda size: size + max(2, size // 2)
    yield lambda size: size + 32
    yield lambda size: size + 1
    yield lambda size: size - 1  # the example may be as long as it can be


_FAR = 2


def _first_change(turn: int, is_batch: bool) -> _Change:
    """The change to try first: another one for each turn, so that equal sizes become different ones."""

    def change(size: int) -> int:
        if is_batch and size >= _LARGE_BATCH:
            return max(size // 2 - turn, 1)
        if size >= _LARGE:  # to a multiple of 32, for the sake of windows and strides
            return size // 2 if turn == 0 else max(32, ((size // 2 - 1) // 32 + 1 - turn) * 32)
        if size < _SMALL and not is_batch:
            return (4 + turn) * size
        if turn == 1 and size >= _SMALL:
            return size + size // 2
        return (turn + 2) * size

    return change


_SizeOf = Callable[[int, _Move], int]


def _small(number: int, move: _Move) -> int:
    """A third of a size, and an odd one."""
    if move.limits is not None:
        return move.size + move.limits[0]
    return max(1, min(move.size, (move.size // 3 | 1) + 2 * number * (move.size > 8)))


def _large(number: int, move: _Move) -> int:
    """A size beyond all usual strides, or one that is cheaper than the example's if that is large."""
    if move.limits is not None:
        return move.size + move.limits[1]
    if move.is_batch:
        return move.size + 1 if move.size < _LARGE_BATCH else move.size // 2 + 1
    if move.size >= _LARGE:
        return 3 * move.size // 4 | 1
    return (2 * move.size + 33 if move.size < 32 else move.size + move.size // 4) | 1


def _alternating(first: int) -> _SizeOf:
    """Every other dimension large, the others small."""
    return lambda number, move: (_large if number % 2 == first else _small)(number, move)


def _ones(batch: bool) -> _SizeOf:
    """The batch, or all else, of size 1."""
    return lambda number, move: 1 if move.limits is None and move.is_batch == batch else move.size


_Shapes = list[torch.Size]


def _shapes(values: Any) -> _Shapes:
    leaves = pytree.tree_leaves(values)
    return [leaf.shape for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]


def _loses_samples(inputs: _Shapes, outputs: _Shapes, its_inputs: _Shapes, its_outputs: _Shapes) -> bool:
    """Whether samples no longer have one result each: ``view(-1, 400)`` takes any size, but means one."""
    batches = inputs[0][0], its_inputs[0][0]
    return any(
        shape[0] == batches[0] and its_shape[0] not in batches
        for shape, its_shape in zip(outputs, its_outputs, strict=False)
    )
