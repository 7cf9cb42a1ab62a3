"""Which positions of a weight, and how many of each layer.

``layer_state`` is what a decision sees of one layer and ``update_context`` what it sees of the run;
``select`` takes the largest scores of one layer, ``select_across`` of one that is sharded over processes
(``block``), ``for_all_layers`` of all layers together; ``draw`` draws at random; ``allocate`` divides a
total into exact counts.

Tensors only: no model, no optimizer. Imports errors only.
"""
