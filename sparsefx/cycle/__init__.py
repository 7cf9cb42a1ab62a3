"""Updates of the masks as decisions on tensors alone, when they happen, and how fast they change."""

from sparsefx.cycle.positions.allocate import allocate
from sparsefx.cycle.positions.for_all_layers import ForAllLayers
from sparsefx.cycle.positions.layer_state import LayerState
from sparsefx.cycle.positions.update_context import UpdateContext
from sparsefx.cycle.rules.decay import DECAY, Decay
from sparsefx.cycle.rules.gradient_terms import ExplorationPenalty, RandomWalk
from sparsefx.cycle.rules.grow import GROW, Grow
from sparsefx.cycle.rules.prune import PRUNE, AdaptiveThreshold, MagnitudeAndGradient, Prune
from sparsefx.cycle.rules.redistribute import REDISTRIBUTE, OfSurvivors, Redistribute
from sparsefx.cycle.updates.constant_fan_in import ConstantFanIn
from sparsefx.cycle.updates.densities import DENSITIES, Densities
from sparsefx.cycle.updates.gradual_pruning import GradualPruning, keep_largest
from sparsefx.cycle.updates.prune_and_regrow import PruneAndRegrow
from sparsefx.cycle.updates.record import CycleRecord, LayerRecord
from sparsefx.cycle.updates.schedule import (
    NEVER,
    Clock,
    CountedCycles,
    DeferredSchedule,
    Schedule,
    Timing,
)
from sparsefx.cycle.updates.stored_values import Hysteresis, positive
from sparsefx.cycle.updates.update import LayerOutcome, Update, in_turn

__all__ = [
    "DECAY",
    "DENSITIES",
    "GROW",
    "NEVER",
    "PRUNE",
    "REDISTRIBUTE",
    "AdaptiveThreshold",
    "Clock",
    "ConstantFanIn",
    "CountedCycles",
    "CycleRecord",
    "Decay",
    "DeferredSchedule",
    "Densities",
    "ExplorationPenalty",
    "ForAllLayers",
    "GradualPruning",
    "Grow",
    "Hysteresis",
    "LayerOutcome",
    "LayerRecord",
    "LayerState",
    "MagnitudeAndGradient",
    "OfSurvivors",
    "Prune",
    "PruneAndRegrow",
    "RandomWalk",
    "Redistribute",
    "Schedule",
    "Timing",
    "Update",
    "UpdateContext",
    "allocate",
    "in_turn",
    "keep_largest",
    "positive",
]
