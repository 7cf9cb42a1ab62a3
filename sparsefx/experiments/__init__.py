"""The experiments of the papers: their networks, data, recipes, training runs, results and tables.

- ``data``: the data sets, read from files; batches.
- ``networks``: the networks.
- ``ledger``: the results of finished runs, as files.
- ``run``: one run, from its settings to its entry in the ledger; ``run.recipes``: how papers train.
- ``tables``: the papers' tables and figures, made of the ledger alone.

Imports go in one direction: ``data`` and ``networks`` import none of the others, ``ledger`` imports
``networks``, ``run`` imports these three, and ``tables`` imports ``ledger`` and ``run.recipes``. A test
enforces it. Only this package knows of papers. Of sparsefx, the command line alone imports it. What it does
with a model, any user can do with the public functions.
"""
