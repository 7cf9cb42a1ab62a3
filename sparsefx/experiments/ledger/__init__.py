"""The results ledger: one JSON-lines file per network and data set, a line for each finished run.

- ``record``: a run and its rows; ``json_decode``: JSON to these classes, with errors that say where.
- ``identity``: a run's configuration as a name. Two runs with one name are the same experiment.
- ``ledger``: the folder of files: read, filter, add, replace. ``convert``: the older format to this one.
- ``entries``: the runs as they are stored; ``files``: appending and replacing while others write.
- ``metrics``: numbers that are read off a run; ``statistics``: their means over seeds.

The package imports ``sparsefx.errors``, and ``sparsefx.experiments.networks`` for the spellings of names.

To add a metric, add a row to ``METRICS``. To add a field to the record, give it a default in ``record.py``:
the lines that exist are read without it. A field without a default needs another ``SCHEMA``.
"""
