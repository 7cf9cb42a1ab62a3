"""The data sets of the papers: uint8 images on a device, and batches made there."""

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
