"""The two domains of the analysis, as data: what is known of a value, and which of its indices stay.

``facts`` says which elements vary with the input and what the others are; ``keep_sets`` which indices of
which dimensions are kept. Imports ``graph``; the operations' rules (``ops``) and the solvers stand above.
"""
