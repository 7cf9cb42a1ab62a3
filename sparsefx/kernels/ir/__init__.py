"""The computation of a region as data.

``program`` has the instructions and how they are written to text and read from it; ``shapes`` infers the
shapes of all values and refuses inputs that do not fit; ``packed`` holds weights in the order in which
kernels read them; ``check`` refuses a forged program or weights that it does not fit; ``function_names``
lists what is done element by element.

Imports nothing else of ``kernels``. To add an instruction: its dataclass and its place in
``Instruction`` here, its shape in ``shapes`` and its rules in ``check``; a kernel in ``codegen``; a step
in ``planner/steps.py``, made in ``planner/plan.py``; and the node that becomes it in
``frontend/nodes.py``. Files hold programs as text: a field that is added needs a default, and none is
renamed.
"""
