"""Kernels as LLVM's intermediate language.

``builder`` has the loops and the vectors of lanes that all are written with, ``vectors`` how wide those
are on this processor. ``convolution``, ``pooling``, ``pointwise`` (with its ``functions``), ``moving``
and ``transposing`` each make kernels; ``dispatch_loop`` is the loop that calls them one after the other.

Imports ``ir``. To add a kernel: a cached function that returns a ``Kernel`` with the names of its
arguments, and a step in ``planner/steps.py`` that gives them values. A function done element by element
is a row in ``functions.py`` and its name in ``ir/function_names.py``. Nothing here compiles: that is
``runtime/native.py``.
"""
