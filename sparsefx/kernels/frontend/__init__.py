"""Which nodes of a graph sparse kernels compute, and as what.

``nodes`` says of one node which instruction it is, or why it is none; ``lowering`` makes a program of a
connected part of the graph, in which activations and sums go into the layers before them; ``backend``
hands both to the pass ``Regions``, and measures where asked to.

Imports ``runtime`` and ``ir``, and ``sparsefx.passes``. To compute another operation: a branch in
``NodeLowering`` that returns a ``LoweredNode``, and a row in the tests of ``tests/kernels/frontend``.
What it returns must hold at every input size, not at the example's alone.
"""
