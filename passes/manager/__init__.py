"""Runs passes: the contract of a pass, the pipeline, and models that are compiled in parts.

``pipeline`` has ``Pass``, ``Outcome`` and the loop that checks each pass; ``partial_compile`` rewrites
a model as one graph or, where its forward stays Python, every part of it that traces, along the calls
that ``part_calls`` records.

Imports ``capture``, ``graph`` and ``running``; the passes stand above, in ``rewrites``.
"""
