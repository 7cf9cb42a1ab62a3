"""Graph passes on ``torch.fx``: they take any traced model and know nothing of training.

Read in this order: ``capture`` (Python to graph), ``program`` (graph to ATen calls), ``ops`` (what is
known of each operation), ``facts`` (what varies, what is constant, what is read), ``slices`` (what can
be removed together), and the passes: ``canonical``, ``fold_batchnorm``, ``fold_constants``, ``shrink``,
run by ``pipeline``.
"""
