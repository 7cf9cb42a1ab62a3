"""The masked weights that an optimizer trains, found again at every step and at no cost.

``trained_weights`` finds them in a model, each by a ``weight_handles``. ``weight_checks`` notices weights
that others have set, or that are not finite.

Imports ``masking`` and ``cycle.positions``.
"""
