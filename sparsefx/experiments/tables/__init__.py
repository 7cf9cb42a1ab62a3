"""The papers' tables and figures, made of the ledger alone.

- ``query``: which runs a cell is about; ``groups``: which of them are repetitions, and how groups differ.
- ``cells``: a cell is a query, a metric and published numbers; it is measured on the runs.
- ``published``: the published numbers; ``paper``: the tables and figures of the paper, as cells.
- ``table``: a table as Markdown and CSV; ``figures``: figures as PNG; ``page``: all of it as files or a page.

The package imports the ledger and the papers' recipes (``run.recipes``), and no network, data or training.

To add a table, write a function in ``paper`` that returns a ``Table`` of ``Cell`` queries, with its published
numbers in ``published``, and add it to ``tables()``. It then inherits the tests of
``tests/experiments/tables/test_tables.py`` and appears in every page of results.
"""
