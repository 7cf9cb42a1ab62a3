"""Masks on a model: which layers get one, and how the invariant holds.

``sparsify`` is the verb. ``selection`` finds the weights that can be masked, ``first_masks`` draws their
masks, ``layers`` has the masked classes. ``masks`` holds the invariant (a weight is exactly 0 where its
mask is False), with ``mask_record`` on modules, ``mask_values`` on tensors and ``load_masks`` where a
state dict is loaded. ``packing`` keeps active values alone, ``sharding`` knows weights that are sharded
over processes, and ``replicas`` keeps masks equal where every process holds a full copy.

Imports ``cycle.positions``, ``passes.capture`` and ``_common``; optimizers and methods stand above. To
mask another kind of layer: a class in ``layers`` and its row in ``MASKABLE``.
"""
