"""The passes, a file each.

A pass is a frozen dataclass with a ``name`` and ``run(graph_module, inputs) -> Outcome``. It leaves a
valid graph with the same function, says whether it changed anything, and run again at once changes
nothing.

Imports ``analysis``, ``graph`` and ``manager``; a pass imports no other pass. To add one: a file here,
its place in the list of passes in ``sparsefx/export.py``, and a golden graph in its test.
"""
