"""Graphs as plain data, for files that execute nothing.

``plain_values`` turns values into JSON and back, ``graph_data`` graphs, and ``vocabulary`` is the
closed list of functions that a file may name. Trusts nothing that it reads.
"""
