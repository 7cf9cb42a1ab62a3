"""One run: from its settings to its entry in the ledger.

- ``settings``: what the names on the command line mean, decided; ``recipes``: how the papers train.
- ``start``: the network, its optimizer and the method; ``setup``: the network, its data and the settings.
- ``train``: the training loop; ``evaluate``, ``analyse``: what is measured; ``finish``: the entry.
- ``checkpoint``, ``interrupt``: how a run stops and goes on; ``logs``: what it tells on the way.

The package imports ``data``, ``networks`` and ``ledger`` of the experiments, and the public functions of
sparsefx. Nothing here imports ``tables``.

To add an analysis, write a function of a ``Setup`` that returns plain data and add it to ``ANALYSES``; its
name is then a choice of ``sparsefx train --analyse``. To add a recipe, see ``recipes``.
"""
