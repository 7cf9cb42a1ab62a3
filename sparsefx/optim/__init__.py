"""The training step: an optimizer that keeps a model sparse.

``optimizer_wrapper`` passes for the wrapped optimizer, and ``sparse_optimizer`` runs the updates of a
method's ``rules`` after its steps. ``trained_weights`` finds the masked weights that it holds, each by a
``weight_handles``; ``layer_states`` shows them to an update. ``momentum`` reads scores for growth off the
optimizer's state, ``averages`` keeps one where it has none, ``auxiliary_tensors`` holds what else a method
stores. ``active_gradients`` is for optimizers that take all positions together, ``weight_checks``
notices weights that others have set or that are not finite. ``checkpoint_schema`` says what a checkpoint
holds, ``transfer_state`` moves optimizer state to an export.

Imports ``cycle`` and ``masking``. To support another optimizer: its state's name in ``momentum``.
"""
