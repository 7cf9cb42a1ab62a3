"""``save`` and ``load``: an exported model as one file of tensors and plain data, with no code in it.

``file`` is the file on disk, ``plan`` what is written in it of each module, ``describe`` goes from a model
to a plan, ``rebuild`` from a plan and the user's architecture to a model; ``trial`` tries a load before it is
written. Graphs are turned into plain data and back by ``sparsefx.passes.serialize.graph_data``.
"""

from sparsefx.archive.archive import load, save

__all__ = ["load", "save"]
