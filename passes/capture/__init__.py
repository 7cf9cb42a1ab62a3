"""From a model's Python forward to a graph.

``capture`` is the entry. ``module_tracer`` traces without values and keeps what does not trace as
leaves; ``example_tracer`` traces along example calls, with proxies that know their values
(``example_proxy``). ``constructors`` and ``wrapped_functions`` record calls that fx would not.
``branches`` says which branches may be taken, ``coincidental_sizes`` which sizes are alike by chance
only; ``size_guards`` and ``argument_guards`` let a graph refuse what it was not traced for.

Imports ``graph`` and ``running``.
"""
