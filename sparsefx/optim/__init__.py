"""The training step: an optimizer that keeps a model sparse.

``optimizer_wrapper`` passes for the wrapped optimizer, ``sparse_optimizer`` runs the updates of a
method's ``rules`` after its steps, and ``sparse_momentum`` is that with the paper's rules. ``momentum``
reads scores for growth off the optimizer's state, ``averages`` keeps one where it has none,
``auxiliary_tensors`` holds what else a method stores, ``checkpoint_schema`` says what a checkpoint
holds, and ``transfer_state`` moves optimizer state to an export.

Imports ``cycle`` and ``masking``. To support another optimizer: its state's name in ``momentum``.
"""
