"""The passes, a file each.

A pass is a frozen dataclass with a ``name`` and ``run(graph_module, analyses) -> Outcome``. It leaves a
valid graph with the same function and says whether it changed anything. Run again at once, it changes
nothing.

Imports ``analysis``, ``graph`` and ``manager``; a pass imports no other pass. To add one, write a file here,
give it a place in ``default_passes`` of ``sparsefx/export_passes.py``, and test it with a golden graph.
"""
