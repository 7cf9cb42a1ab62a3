"""Parts of a graph that something else computes faster.

``regions`` is the pass: it asks a ``Backend`` which nodes it takes, hands connected parts of them over and
puts the modules that come back in their places. ``partition`` finds the parts, as large as they can be
without a cycle, and ``stable_sort`` brings the graph into order afterwards.

Imports ``analysis``, ``graph``, ``manager`` and ``running``. To add a backend: a class with the methods of
``Backend``, and its pass in ``sparsefx/export_passes.py``; ``sparsefx/kernels/frontend/backend.py`` is one.
"""
