"""What a model or an export is: tables for people, and the same as plain data.

``report`` is the verb; ``model_report`` describes a model layer by layer, ``export_report`` what an
export removed and kept, ``costs`` counts parameters and FLOPs, and ``speedup`` estimates the speed-ups
of the paper's Table 4.

Imports ``masking``, ``kernels`` and ``passes``; decides nothing. To add a column: a field of the row's
dataclass and its heading in the same file.
"""
