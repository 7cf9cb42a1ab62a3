"""The training step: an optimizer that keeps a model sparse.

``optimizer_wrapper`` passes for the wrapped optimizer, and ``sparse_optimizer`` runs the updates of a
method's ``rules`` after its steps. ``weights`` finds the masked weights that it holds, and ``gradients``
reads what growth needs; ``layer_states`` shows both to an update. ``auxiliary_tensors`` holds what else a
method stores. ``gradient_window`` says in which steps an accelerated model computes gradients of inactive
weights. ``checkpoint_schema`` says what a checkpoint holds, ``transfer_state`` moves optimizer state to an
export.

Imports ``cycle`` and ``masking``. To support another optimizer: its state's name in ``gradients.momentum``.
"""
