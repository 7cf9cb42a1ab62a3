"""Sparse CPU kernels: exported layers whose remaining zeros cost no time.

From the top down, each folder importing only those below it:

- ``frontend``: which nodes of a graph can be computed, and as which instructions;
- ``runtime``: the module in their place, its operator, machine code, threads;
- ``planner``: a batch of given size as a schedule of plans, and a plan as steps;
- ``codegen``: the kernels that the steps call, as LLVM's intermediate language;
- ``ir``: the computation and its weights as data.

To add an instruction, begin in ``ir``: its docstring lists every file that needs to know of it. A function
done element by element needs no instruction, only a row in two tables: see ``codegen``.
"""
