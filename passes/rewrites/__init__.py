"""The passes, a file each.

A pass is a frozen dataclass with a ``name`` and ``run(graph_module, analyses) -> Outcome``. It leaves a
valid graph with the same function, says whether it changed anything, and run again at once changes
nothing.

Imports ``analysis``, ``capture``, ``graph``, ``manager`` and ``running``; a pass imports no other pass. To
add one: a file here, its place in ``default_passes`` in ``sparsefx/export_passes.py``, and a golden graph in
its test. 'Adding an operation or a pass' in CONTRIBUTING.md names the lists of passes that tests compare.
"""
