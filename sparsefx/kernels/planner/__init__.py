"""What is computed for a batch of given size, in which order, and where values are.

``schedule`` divides a batch into parts and a program into ``sections``; ``plan`` makes ``steps`` (and
``moves``, which only move values) of a section. ``lanes`` is the layout of values, ``windows`` the
layouts that sliding windows need, ``tiling`` how a convolution is divided and what that costs,
``memory`` where values are.

Imports ``codegen`` and ``ir``; compiles and runs nothing. To add an instruction: a ``Step`` with its
reads, its write, its kernel's arguments and its cost, and a method of ``Plan`` that makes it. Costs
decide between schedules, so a step whose cost is wrong is computed right, but slowly.
"""
