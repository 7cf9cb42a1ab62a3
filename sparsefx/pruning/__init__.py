"""One-shot pruning of a model that is trained: ``prune`` and ``prune_below``.

``prune`` removes the weights of the lowest score down to a density; ``budgets`` says how many each
layer keeps. Imports ``cycle``, ``masking`` and :mod:`sparsefx.scores`, which has the scores. To add a
score, add a file to :mod:`sparsefx.scores` and its row to ``SCORES``.
"""
