"""The two domains of the analysis, as data: the facts of a value, and the indices of it that stay.

``facts`` holds which elements vary with the input, and the constants of the others. ``keep_sets`` holds
which indices of each dimension are kept. Imports ``graph``; the rules of operations (``ops``) and the
solvers stand above.
"""
