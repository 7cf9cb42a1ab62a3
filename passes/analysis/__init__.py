"""Which channels do nothing: dataflow over the recorded ATen calls.

``facts`` and ``keep_sets`` are the two results. ``ops/`` describes how facts pass through each operation,
what it reads and what it couples. ``sizes`` fixes the dimensions on which a size depends that cannot be
rewritten. ``shape_arguments`` rewrites the other sizes.

Imports ``graph``. To add an operation: a row in ``ops/__init__.py``.
"""
