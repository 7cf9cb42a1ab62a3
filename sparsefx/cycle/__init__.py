"""Updates of the masks as decisions on tensors alone, when they happen, and how fast they change."""

from sparsefx.cycle.allocate import allocate
from sparsefx.cycle.constant_fan_in import ConstantFanIn
from sparsefx.cycle.decay import DECAY, Decay
from sparsefx.cycle.densities import DENSITIES, Densities
from sparsefx.cycle.for_all_layers import ForAllLayers
from sparsefx.cycle.gradient_terms import ExplorationPenalty, RandomWalk
from sparsefx.cycle.grow import GROW, Grow
from sparsefx.cycle.layer_state import LayerState
from sparsefx.cycle.moment import Moment
from sparsefx.cycle.prune import PRUNE, AdaptiveThreshold, MagnitudeAndGradient, Prune
from sparsefx.cycle.record import CycleRecord, LayerRecord
from sparsefx.cycle.redistribute import REDISTRIBUTE, OfSurvivors, Redistribute
from sparsefx.cycle.stored import Hysteresis, positive
from sparsefx.cycle.swap import Swap
from sparsefx.cycle.thin import Thin, keep_largest
from sparsefx.cycle.timing import Clock, Timing
from sparsefx.cycle.update import LayerOutcome, Update, in_turn

__all__ = [
    "DECAY",
    "DENSITIES",
    "GROW",
    "PRUNE",
    "REDISTRIBUTE",
    "AdaptiveThreshold",
    "Clock",
    "ConstantFanIn",
    "CycleRecord",
    "Decay",
    "Densities",
    "ExplorationPenalty",
    "ForAllLayers",
    "Grow",
    "Hysteresis",
    "LayerOutcome",
    "LayerRecord",
    "LayerState",
    "MagnitudeAndGradient",
    "Moment",
    "OfSurvivors",
    "Prune",
    "RandomWalk",
    "Redistribute",
    "Swap",
    "Thin",
    "Timing",
    "Update",
    "allocate",
    "in_turn",
    "keep_largest",
    "positive",
]
