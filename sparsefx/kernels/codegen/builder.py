"""The few constructs that all kernels are written with: loops, vectors of lanes, arguments by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from sparsefx.kernels.codegen.vectors import LANES, VECTOR_BYTES

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
VECTOR = ir.VectorType(F32, LANES)
INDICES = ir.VectorType(I32, LANES)
MASK = ir.VectorType(I1, LANES)
POINTER = ir.PointerType()

IRValue = Any  # an ir.Value; llvmlite has no types


@dataclass(frozen=True)
class Kernel:
    """One function ``void run(const int64_t *arguments, int64_t thread, int64_t threads)``.

    Attributes:
        text: LLVM's intermediate language.
        arguments: what each of the ``int64_t`` means, in order.
    """

    text: str
    arguments: tuple[str, ...]


class Code(ir.IRBuilder):  # type: ignore[misc]
    """Builds a kernel's body.

    Args:
        arguments: names of the arguments; one that starts with ``*`` is a pointer.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.unit = ir.Module()
        function = ir.Function(self.unit, ir.FunctionType(ir.VoidType(), [POINTER, I64, I64]), "run")
        super().__init__(function.append_basic_block("entry"))
        packed, self.thread, self.threads = function.args
        self.arguments = tuple(name.lstrip("*") for name in arguments)
        self._values = {}
        for index, name in enumerate(arguments):
            value = self.load(self.element(packed, number(index), I64), typ=I64)
            self._values[name.lstrip("*")] = self.inttoptr(value, POINTER) if name[0] == "*" else value

    def __getitem__(self, name: str) -> IRValue:
        return self._values[name]

    def finish(self) -> Kernel:
        """Return from the function."""
        self.ret_void()
        return Kernel(str(self.unit), self.arguments)

    @contextmanager
    def loop(self, start: IRValue, stop: IRValue, step: int = 1) -> Iterator[IRValue]:
        """``for (i = start; i < stop; i += step)``."""
        with self.loop_carrying(start, stop, [], step) as (index, _, _):
            yield index

    @contextmanager
    def loop_carrying(
        self, start: IRValue, stop: IRValue, initial: Sequence[IRValue], step: int = 1
    ) -> Iterator[tuple[IRValue, list[IRValue], list[IRValue]]]:
        """A loop with values that each turn passes on to the next.

        Yields:
            The index; the values on entry to a turn, which are the results after the loop; and a list that
            the body fills with the next turn's values.
        """
        before = self.block
        head, body, end = (self.append_basic_block(name) for name in ("loop", "turn", "done"))
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(I64)
        index.add_incoming(start, before)
        carried = [self.phi(value.type) for value in initial]
        for phi, value in zip(carried, initial, strict=True):
            phi.add_incoming(value, before)
        self.cbranch(self.icmp_signed("<", index, stop), body, end)
        self.position_at_end(body)
        following: list[IRValue] = []
        yield index, carried, following
        index.add_incoming(self.add(index, number(step)), self.block)
        for phi, value in zip(carried, following, strict=True):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.position_at_end(end)

    def share(self, total: IRValue) -> tuple[IRValue, IRValue]:
        """First and last index, exclusive, of this thread's part of ``total`` pieces of work."""
        first = self.sdiv(self.mul(self.thread, total), self.threads)
        return first, self.sdiv(self.mul(self.add(self.thread, number(1)), total), self.threads)

    def digits(self, value: IRValue, *bases: IRValue) -> list[IRValue]:
        """A number's digits, the base of each given except the first's; the most significant comes first."""
        result = []
        for base in reversed(bases):
            result.append(self.srem(value, base))
            value = self.sdiv(value, base)
        return [value, *reversed(result)]

    def at(self, pointer: IRValue, *offsets: IRValue) -> IRValue:
        """A pointer moved by so many bytes."""
        for offset in offsets:
            pointer = self.element(pointer, offset, I8)
        return pointer

    def element(self, pointer: IRValue, index: IRValue, kind: IRValue) -> IRValue:
        """A pointer to an array's element."""
        return self.gep(pointer, [index], source_etype=kind)

    def read(self, pointer: IRValue, index: IRValue, kind: IRValue) -> IRValue:
        """An array's element."""
        return self.load(self.element(pointer, index, kind), typ=kind)

    def read_index(self, pointer: IRValue, index: IRValue) -> IRValue:
        """An element of an array of 32-bit integers, as 64 bits."""
        return self.sext(self.read(pointer, index, I32), I64)

    def read_vector(self, pointer: IRValue, *offsets: IRValue) -> IRValue:
        """The lanes at an aligned address."""
        return self.load(self.at(pointer, *offsets), typ=VECTOR, align=VECTOR_BYTES)

    def write_vector(self, value: IRValue, pointer: IRValue, *offsets: IRValue) -> None:
        """Store the lanes at an aligned address."""
        self.store(value, self.at(pointer, *offsets), align=VECTOR_BYTES)

    def spread(self, scalar: IRValue) -> IRValue:
        """A vector with the same number in every lane."""
        empty = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
        single = self.insert_element(empty, scalar, ir.Constant(I32, 0))
        return self.shuffle_vector(single, empty, ir.Constant(INDICES, [0] * LANES))

    def bits_as_float(self, argument: str) -> IRValue:
        """A float that an argument carries in its low 32 bits, in every lane."""
        return self.spread(self.bitcast(self.trunc(self[argument], I32), F32))

    def call_vector(self, intrinsic: str, *operands: IRValue) -> IRValue:
        """One of LLVM's functions on vectors of lanes, e.g. ``llvm.fma``."""
        name = f"{intrinsic}.v{LANES}f32"
        function = self.unit.globals.get(name) or ir.Function(
            self.unit, ir.FunctionType(VECTOR, [operand.type for operand in operands]), name
        )
        return self.call(function, operands)

    def fetch(self, pointer: IRValue, *offsets: IRValue) -> None:
        """Ask for what is at an address, which need not be there, before it is read."""
        name = "llvm.prefetch.p0"
        kinds = [pointer.type, I32, I32, I32]
        function = self.unit.globals.get(name) or ir.Function(
            self.unit, ir.FunctionType(ir.VoidType(), kinds), name
        )
        to_read_into_nearest_cache = (ir.Constant(I32, value) for value in (0, 3, 1))
        self.call(function, [self.at(pointer, *offsets), *to_read_into_nearest_cache])

    def clamp(self, value: IRValue, low: IRValue, high: IRValue) -> IRValue:
        """``value`` between bounds; NaN stays NaN."""
        value = self.select(self.fcmp_ordered("<", value, low), low, value)
        return self.select(self.fcmp_ordered(">", value, high), high, value)

    def smaller(self, first: IRValue, second: IRValue) -> IRValue:
        """The smaller of two integers."""
        return self.select(self.icmp_signed("<", first, second), first, second)


def number(value: int) -> IRValue:
    """A constant of 64 bits."""
    return ir.Constant(I64, value)
