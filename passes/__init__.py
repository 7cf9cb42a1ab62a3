"""Graph passes on ``torch.fx``. They take any traced model and know nothing about training.

Read the folders in this order: ``running`` (models on example values), ``graph`` (what a graph computes),
``capture`` (Python to graph), ``analysis`` (what varies, what is read, what can be removed), ``manager``
(the contract of a pass, and the pipeline), ``rewrites`` (a pass a file), ``serialize`` (graphs as data).
"""
