"""What the training step does with gradients: what growth reads, and what is kept from optimizers.

``momentum`` reads scores for growth off an optimizer's state, ``averages`` keeps one where it has none.
``active_gradients`` hides the gradients of inactive weights from optimizers that mix positions.

Imports ``optim.weights`` and ``masking``. To support another optimizer: its state's name in ``momentum``.
"""
