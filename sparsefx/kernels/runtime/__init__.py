"""Runs programs: on tensors, by machine code, in threads.

``region`` is the module that a graph holds, ``operators`` the operator ``sparsefx::region`` that it
calls, ``executor`` one run of it. ``execution_plan`` keeps what runs for a batch size (in a
``byte_bounded_cache``), ``calls`` its kernels and their arguments as one array. ``native`` compiles
kernels and keeps them on disk, ``threads`` finds those that torch computes with.

Imports ``planner``, ``codegen`` and ``ir``. ``native`` and ``region`` import without llvmlite: what
needs it is imported when a region first runs. An instruction needs no change here.
"""
