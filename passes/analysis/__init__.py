"""Which channels do nothing: dataflow over the recorded ATen calls.

``facts`` and ``keep_sets`` are the two results; ``ops/`` says of each operation how facts go through
it, what it reads and what it couples; ``sizes`` pins what a size that cannot be rewritten depends on,
and ``shape_arguments`` rewrites those that can.

Imports ``graph``. To add an operation: a row in ``ops/__init__.py``.
"""
