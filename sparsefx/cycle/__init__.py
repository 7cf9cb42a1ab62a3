"""The sparse cycle as decisions on tensors alone: prune, redistribute, grow, and the decay of the rate."""

from sparsefx.cycle.allocate import allocate
from sparsefx.cycle.cycle import LayerOutcome, run_cycle
from sparsefx.cycle.decay import DECAY, Decay
from sparsefx.cycle.grow import GROW, Grow
from sparsefx.cycle.layer_state import LayerState
from sparsefx.cycle.prune import PRUNE, Prune
from sparsefx.cycle.record import CycleRecord, LayerRecord
from sparsefx.cycle.redistribute import REDISTRIBUTE, Redistribute

__all__ = [
    "DECAY",
    "GROW",
    "PRUNE",
    "REDISTRIBUTE",
    "CycleRecord",
    "Decay",
    "Grow",
    "LayerOutcome",
    "LayerRecord",
    "LayerState",
    "Prune",
    "Redistribute",
    "allocate",
    "run_cycle",
]
