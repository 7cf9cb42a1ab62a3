"""The methods by name: one row each."""

from __future__ import annotations

from typing import Any

from sparsefx.cycle import (
    AdaptiveThreshold,
    ConstantFanIn,
    ExplorationPenalty,
    ForAllLayers,
    Hysteresis,
    MagnitudeAndGradient,
    RandomWalk,
    Timing,
    positive,
)
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.methods.parts import (
    FallingDensity,
    FirstMasks,
    Penalty,
    Regrowth,
    Sparsity,
    Updates,
    WeightRules,
)
from sparsefx.methods.rounds import Rounds
from sparsefx.methods.row import Method

_EVERY_100 = Timing(every=100, last=0.75)


def _depth(sparsity: Sparsity) -> float:
    """How far dormant weights go, so that the wanted fraction is active (Bellec et al. 2018, appendix)."""
    l1, noise, learning_rate = 1e-5, 1e-5, 0.05
    temperature = learning_rate * noise**2 / 2
    return -(1 - sparsity.density) / sparsity.density * temperature / l1


def _often_at_first(step: int) -> float:
    """How likely an update of the masks is at a step (Guo, Yao & Chen 2016, section 3.3)."""
    return 1 / (1 + 1e-4 * step)


_ROWS = (
    Method(
        "dense",
        "Every weight trains.",
        Sparsity(1.0),
        FirstMasks(masks=False),
        tier="measured",
    ),
    Method(
        "static",
        "A random mask that never changes (Mostafa & Wang 2019, section 4).",
        tier="measured",
    ),
    Method(
        "thin-dense",
        "All layers narrower, to the sparse network's size with its mask (Mostafa & Wang 2019, section 4).",
        first_masks=FirstMasks(masks=False, width=True),
    ),
    Method(
        "sparse-momentum",
        "Dettmers & Zettlemoyer 2019, section 3.",
        updates=Updates(
            Timing(),
            regrowth=Regrowth("magnitude", redistribute="momentum", grow="momentum"),
            prune_rate=0.5,
            decay="cosine",
        ),
        tier="measured",
    ),
    Method(
        "set",
        "Sparse evolutionary training (Mocanu et al. 2018, algorithm 1).",
        Sparsity(distribution="set"),
        updates=Updates(Timing(), regrowth=Regrowth("magnitude_by_sign"), prune_rate=0.3),
        weights=WeightRules(new_weights="initial", inactive_buffers="zero_on_grow"),
        tier="measured",
    ),
    Method(
        "dsr",
        "Dynamic sparse reparameterization (Mostafa & Wang 2019, algorithm 1).",
        updates=Updates(
            Timing(every=((0.0, 100), (0.125, 200), (0.4, 400), (0.7, 800)), last=0.95),
            regrowth=Regrowth(
                ForAllLayers(AdaptiveThreshold(wanted=0.05)), redistribute="survivors", grow="random_fresh"
            ),
        ),
        weights=WeightRules(inactive_buffers="zero_on_grow"),
        tier="measured",
    ),
    Method(
        "deep-r",
        "Deep rewiring with a fixed number of connections (Bellec et al. 2018, algorithm 1).",
        updates=Updates(Timing(every=1, at_last=True), regrowth=Regrowth("sign_flip")),
        weights=WeightRules(
            new_weights="sign",
            inactive_buffers="zero_on_grow",
            signs=True,
            gradient_terms=lambda sparsity: (RandomWalk(l1=1e-5, noise=1e-5),),
        ),
        tier="measured",
    ),
    Method(
        "soft-deep-r",
        "Deep rewiring with a free number of connections (Bellec et al. 2018, algorithm 2).",
        updates=Updates(Timing(every=1, at_last=True), update=lambda sparsity: positive),
        weights=WeightRules(
            signs=True,
            memory="all",
            least=_depth,
            gradient_terms=lambda sparsity: (RandomWalk(l1=1e-5, noise=1e-5, dormant=True),),
        ),
    ),
    Method(
        "rigl",
        "Evci et al. 2020, section 3.",
        Sparsity(distribution="erk"),
        updates=Updates(
            _EVERY_100,
            regrowth=Regrowth("magnitude", grow="gradient", rounding="floor", keeps_regrown=True),
            prune_rate=0.3,
            decay="cosine",
            replaces_step=True,
        ),
        weights=WeightRules(inactive_buffers="zero_on_grow"),
    ),
    Method(
        "snfs-erk",
        "Sparse networks from scratch as in Evci et al. 2020, section 4: no redistribution, ERK.",
        Sparsity(distribution="erk"),
        updates=Updates(
            _EVERY_100,
            regrowth=Regrowth("magnitude", grow="momentum", rounding="floor", keeps_regrown=True),
            prune_rate=0.3,
            decay="cosine",
        ),
        weights=WeightRules(inactive_buffers="zero_on_grow"),
    ),
    Method(
        "set-itop",
        "SET with in-time over-parameterization (Liu et al. 2021, section 4).",
        Sparsity(distribution="erk"),
        updates=Updates(
            Timing(every=1500),
            regrowth=Regrowth("magnitude"),
            prune_rate=0.5,
            decay="cosine_to_half_percent",
        ),
        weights=WeightRules(inactive_buffers="mask", explores=True),
    ),
    Method(
        "rigl-itop",
        "RigL with in-time over-parameterization (Liu et al. 2021, section 4).",
        Sparsity(distribution="erk"),
        updates=Updates(
            Timing(every=4000),
            regrowth=Regrowth("magnitude", grow="gradient"),
            prune_rate=0.5,
            decay="cosine_to_half_percent",
        ),
        weights=WeightRules(inactive_buffers="mask", explores=True),
    ),
    Method(
        "srigl",
        "Structured RigL: constant fan-in and neuron ablation (Lasby et al. 2024, section 3).",
        Sparsity(distribution="erk"),
        FirstMasks(constant_fan_in=True),
        Updates(
            _EVERY_100,
            update=lambda sparsity: ConstantFanIn(
                density=sparsity.density, distribution=sparsity.distribution
            ),
            prune_rate=0.3,
            decay="cosine",
            replaces_step=True,
        ),
        WeightRules(inactive_buffers="zero_on_grow"),
    ),
    Method(
        "granet",
        "Gradual pruning with zero-cost neuroregeneration (Liu et al. 2021, section 4).",
        Sparsity(start=1.0),
        updates=Updates(
            Timing(every=1000),
            falling=FallingDensity("cubic", thin_scope="global", thin_until=110 / 160),
            regrowth=Regrowth("magnitude", grow="gradient"),
            prune_rate=0.5,
            decay="cosine",
        ),
    ),
    Method(
        "mest",
        "Elastic mutation (Yuan et al. 2021, section 3).",
        Sparsity(distribution="erk"),
        updates=Updates(
            Timing(epochs=5),
            regrowth=Regrowth(MagnitudeAndGradient(0.01)),
            prune_rate=0.05,
            decay="linear",
        ),
        weights=WeightRules(inactive_buffers="zero_on_grow"),
    ),
    Method(
        "top-kast",
        "Jayakumar et al. 2020, section 2.",
        Sparsity(start=1.0),
        updates=Updates(Timing(every=10, at_start=True, at_last=True), falling=FallingDensity("at_once")),
        weights=WeightRules(
            inactive_buffers="mask",
            memory="backward",
            backward=0.1,
            gradient_terms=lambda sparsity: (ExplorationPenalty(1e-5, sparsity.density),),
        ),
    ),
    Method(
        "snip",
        "Lee, Ajanthan & Torr 2019, section 4.",
        first_masks=FirstMasks(score="snip"),
        tier="measured",
    ),
    Method(
        "grasp",
        "Wang, Zhang & Grosse 2020, section 4.",
        first_masks=FirstMasks(score="grasp"),
        score_batches="balanced",
    ),
    Method(
        "synflow",
        "Tanaka et al. 2020, section 6.",
        first_masks=FirstMasks(score="synflow", score_rounds=100),
    ),
    Method(
        "gradual",
        "Gradual magnitude pruning (Zhu & Gupta 2018, section 3).",
        Sparsity(start=1.0),
        updates=Updates(
            Timing(every=100, first=0.2, last=0.75, at_last=True), falling=FallingDensity("cubic")
        ),
        weights=WeightRules(memory="active", inactive_buffers="mask"),
    ),
    Method(
        "compressed-sparse",
        "Gradual pruning of a trained network (Mostafa & Wang 2019, section 4).",
        Sparsity(start=1.0),
        updates=Updates(Timing(epochs=2, last=0.8, at_last=True), falling=FallingDensity("cubic")),
        weights=WeightRules(inactive_buffers="mask"),
        rounds=Rounds(prunings=0, retraining=0.5, learning_rate=0.2),
        tier="measured",
    ),
    Method(
        "han",
        "Train, prune by magnitude, retrain (Han et al. 2015, section 3).",
        rounds=Rounds(prunings=3, retraining=0.5, learning_rate=0.1),
        tier="measured",
    ),
    Method(
        "lottery-ticket",
        "Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, section 2).",
        rounds=Rounds(prunings=10, rewind=0.0),
    ),
    Method(
        "dynamic-network-surgery",
        "Dynamic network surgery (Guo, Yao & Chen 2016, section 3).",
        Sparsity(start=1.0),
        updates=Updates(
            Timing(every=1, last=0.5, chance=_often_at_first),
            update=lambda sparsity: Hysteresis(sparsity.density, sparsity.distribution),
        ),
        weights=WeightRules(memory="all"),
        rounds=Rounds(prunings=0),
        tier="measured",
    ),
    Method(
        "optimal-brain-damage",
        "LeCun, Denker & Solla 1990, section 2.",
        rounds=Rounds(
            prunings=5, score="optimal_brain_damage", scope="global", retraining=0.5, learning_rate=0.1
        ),
        score_batches=50,
        tier="measured",
    ),
    Method(
        "layer-wise-obs",
        "Layer-wise optimal brain surgeon (Dong, Chen & Pan 2017, section 3).",
        Sparsity(distribution="erk"),
        rounds=Rounds(prunings=5, score="layerwise_obs", compensate=True, retraining=0.25, learning_rate=0.1),
        score_batches=50,
        tier="measured",
    ),
    Method(
        "learning-compression",
        "Carreira-Perpinan & Idelbayev 2018, section 3.",
        penalty=Penalty("learning_compression", lambda sparsity: {"level": sparsity.density}),
        rounds=Rounds(prunings=0),
        tier="measured",
    ),
    Method(
        "soft-weight-sharing",
        "Ullrich, Meeds & Welling 2017, section 3.",
        penalty=Penalty("soft_weight_sharing"),
        rounds=Rounds(prunings=0),
        tier="measured",
    ),
    Method(
        "variational-dropout",
        "Molchanov, Ashukha & Vetrov 2017, section 4.",
        penalty=Penalty("variational_dropout"),
        tier="measured",
    ),
    Method(
        "hard-concrete",
        "L0 regularisation (Louizos, Welling & Kingma 2018, section 2).",
        penalty=Penalty("hard_concrete"),
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def method(name: str, /, **changes: Any) -> Method:
    """A method by name, with other values for some of its options.

    Args:
        name: one of ``sparsefx.methods.METHODS``.
        **changes: any option, its timing's (``every``, ``first``, ``last`` ...) and its rounds'
            (``prunings``, ``rewind`` ...) included; ``sparsefx list options`` prints them.

    Raises:
        ArgumentError: the method or an option is unknown, or a value cannot be used.

    Example:
        >>> method("rigl", density=0.05, every=200).name
        'rigl'
    """
    if not isinstance(name, str):
        raise ArgumentError(f"method must be a name such as 'rigl', not {name!r}")
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name].with_(**changes)
