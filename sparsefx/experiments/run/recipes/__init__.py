"""How the papers train: recipes as data.

- ``recipe``: what a recipe is, and its learning rate as a function of the step.
- ``papers``: the recipes by name (``RECIPES``).
- ``tuning``: what a method's own paper sets otherwise, by method and by network.

The package imports ``sparsefx.experiments.data`` and ``sparsefx.cycle``; not the run, not the ledger.

To add a recipe, add a row to ``RECIPES`` with its source and what of it is not certain. It then has a name in
``sparsefx train --recipe``, and inherits the tests of ``tests/experiments/run/test_recipes.py``.
"""
