"""The four choices of a cycle: prune, redistribute, grow, decay.

A file each, and in each a table of named functions (``PRUNE``, ``REDISTRIBUTE``, ``GROW``, ``DECAY``);
``gradient_terms`` has scores that add a gradient term to the magnitude. Imports ``positions``.

To add a prune rule: a function ``(layer, count, generator) -> mask`` in ``prune.py`` and its row in
``PRUNE``; it inherits the generic tests. The docs page 'Parts of your own' has the other signatures. A rule
that decides for all layers at once is a function ``(layers, counts, context) -> masks``, in ``ForAllLayers``.
"""
