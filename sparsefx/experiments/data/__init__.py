"""The data sets of the papers: uint8 images on a device, and batches made there.

- ``load``: a data set by name; a reader each in ``mnist``, ``cifar10`` and ``imagenet``.
- ``images``: what a reader returns, and its errors.
- ``folder``, ``image_folder``: images in a folder for each class, in memory or read for each batch.
- ``batches``: the order of an epoch; ``augment``, ``normalise``: what is done to a batch.

Files here import torch, NumPy and ``sparsefx.errors``, and nothing else of sparsefx. Nothing is downloaded.

To add a data set, write a reader ``read_NAME(root) -> Images`` in a file of its own, add its row with its
normalisation to ``load.py``, a recipe to ``run/recipes/papers.py``, and the number of its classes to
``tables/groups.py``. A copy that is not bit for bit the original has a name of its own.
"""

from sparsefx.experiments.data.batches import Batch, Split, TensorSplit, batch_count, epoch_generator
from sparsefx.experiments.data.load import DATA, Data, held_out, load_data
from sparsefx.experiments.data.normalise import Normalisation

__all__ = [
    "DATA",
    "Batch",
    "Data",
    "Normalisation",
    "Split",
    "TensorSplit",
    "batch_count",
    "epoch_generator",
    "held_out",
    "load_data",
]
