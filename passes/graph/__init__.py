"""What a graph is, and what it computes.

``recorder`` runs a graph and writes its ATen calls into a ``program``; ``record`` does so at every
example size and ``differences`` notes what varies. ``layers`` says which nodes are layers, ``modes``
and ``graph_module`` hold the graphs of training and evaluation, ``origins`` remembers where each
parameter's elements came from.

Imports ``running``. Nothing here decides what can be removed.
"""
