"""Running a model on example values without changing it.

``size_search`` finds input sizes that the model takes, ``trials`` holds what it found, ``examples`` names
arguments, ``untouched`` and ``attributes`` put back what a run changes, ``compare`` tells whether results are
alike up to rounding, ``interpreter`` runs a graph node by node, ``timing`` measures. Imports nothing of this
library.
"""
