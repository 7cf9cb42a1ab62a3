"""What a run tells while it trains.

``log`` says what a log is; ``files`` (CSV and JSON lines), ``screen`` and ``tensorboard`` are the logs there
are, and ``choose`` picks those of a run. They import ``sparsefx.experiments.ledger.record``,
``sparsefx.integrations`` and the type ``sparsefx.methods.Training``.

To add a log, write a subclass of ``Log`` in a file of its own and add it to ``logs_for`` in ``choose``.
"""
