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
from sparsefx.methods.rounds import Rounds
from sparsefx.methods.row import Method

_EVERY_100 = Timing(every=100, last=0.75)


def _depth(method: Method) -> float:
    """How far dormant weights go, so that the wanted fraction is active (Bellec et al. 2018, appendix)."""
    l1, noise, learning_rate = 1e-5, 1e-5, 0.05
    temperature = learning_rate * noise**2 / 2
    return -(1 - method.density) / method.density * temperature / l1


def _often_at_first(step: int) -> float:
    """How likely an update of the masks is at a step (Guo, Yao & Chen 2016, section 3.3)."""
    return 1 / (1 + 1e-4 * step)


_ROWS = (
    Method("dense", "Every weight trains.", density=1.0, masks=False),
    Method("static", "A random mask that never changes (Mostafa & Wang 2019, section 4)."),
    Method(
        "thin-dense",
        "All layers narrower, to the sparse network's size with its mask (Mostafa & Wang 2019, section 4).",
        masks=False,
        width=True,
    ),
    Method(
        "sparse-momentum",
        "Dettmers & Zettlemoyer 2019, section 3.",
        prune="magnitude",
        redistribute="momentum",
        grow="momentum",
        prune_rate=0.5,
        decay="cosine",
        timing=Timing(),
    ),
    Method(
        "set",
        "Sparse evolutionary training (Mocanu et al. 2018, algorithm 1).",
        distribution="set",
        prune="magnitude_by_sign",
        prune_rate=0.3,
        timing=Timing(),
        new_weights="initial",
        inactive_buffers="zero_on_grow",
    ),
    Method(
        "dsr",
        "Dynamic sparse reparameterization (Mostafa & Wang 2019, algorithm 1).",
        prune=ForAllLayers(AdaptiveThreshold(wanted=0.05)),
        redistribute="survivors",
        grow="random_fresh",
        timing=Timing(every=((0.0, 100), (0.125, 200), (0.4, 400), (0.7, 800)), last=0.95),
        inactive_buffers="zero_on_grow",
    ),
    Method(
        "deep-r",
        "Deep rewiring with a fixed number of connections (Bellec et al. 2018, algorithm 1).",
        prune="sign_flip",
        timing=Timing(every=1, at_last=True),
        new_weights="sign",
        inactive_buffers="zero_on_grow",
        signs=True,
        gradient_terms=lambda method: (RandomWalk(l1=1e-5, noise=1e-5),),
    ),
    Method(
        "soft-deep-r",
        "Deep rewiring with a free number of connections (Bellec et al. 2018, algorithm 2).",
        update=lambda method: positive,
        timing=Timing(every=1, at_last=True),
        signs=True,
        memory="all",
        least=_depth,
        gradient_terms=lambda method: (RandomWalk(l1=1e-5, noise=1e-5, dormant=True),),
    ),
    Method(
        "rigl",
        "Evci et al. 2020, section 3.",
        distribution="erk",
        prune="magnitude",
        grow="gradient",
        rounding="floor",
        keeps_regrown=True,
        prune_rate=0.3,
        decay="cosine",
        timing=_EVERY_100,
        inactive_buffers="zero_on_grow",
        replaces_step=True,
    ),
    Method(
        "snfs-erk",
        "Sparse networks from scratch as in Evci et al. 2020, section 4: no redistribution, ERK.",
        distribution="erk",
        prune="magnitude",
        grow="momentum",
        rounding="floor",
        keeps_regrown=True,
        prune_rate=0.3,
        decay="cosine",
        timing=_EVERY_100,
        inactive_buffers="zero_on_grow",
    ),
    Method(
        "set-itop",
        "SET with in-time over-parameterization (Liu et al. 2021, section 4).",
        distribution="erk",
        prune="magnitude",
        prune_rate=0.5,
        decay="cosine_to_half_percent",
        timing=Timing(every=1500),
        inactive_buffers="mask",
        explores=True,
    ),
    Method(
        "rigl-itop",
        "RigL with in-time over-parameterization (Liu et al. 2021, section 4).",
        distribution="erk",
        prune="magnitude",
        grow="gradient",
        prune_rate=0.5,
        decay="cosine_to_half_percent",
        timing=Timing(every=4000),
        inactive_buffers="mask",
        explores=True,
    ),
    Method(
        "srigl",
        "Structured RigL: constant fan-in and neuron ablation (Lasby et al. 2024, section 3).",
        distribution="erk",
        constant_fan_in=True,
        update=lambda method: ConstantFanIn(density=method.density, distribution=method.distribution),
        prune_rate=0.3,
        decay="cosine",
        timing=_EVERY_100,
        inactive_buffers="zero_on_grow",
        replaces_step=True,
    ),
    Method(
        "granet",
        "Gradual pruning with zero-cost neuroregeneration (Liu et al. 2021, section 4).",
        start=1.0,
        densities="cubic",
        thin_scope="global",
        thin_until=110 / 160,
        prune="magnitude",
        grow="gradient",
        prune_rate=0.5,
        decay="cosine",
        timing=Timing(every=1000),
    ),
    Method(
        "mest",
        "Elastic mutation (Yuan et al. 2021, section 3).",
        distribution="erk",
        prune=MagnitudeAndGradient(0.01),
        prune_rate=0.05,
        decay="linear",
        timing=Timing(epochs=5),
        inactive_buffers="zero_on_grow",
    ),
    Method(
        "top-kast",
        "Jayakumar et al. 2020, section 2.",
        start=1.0,
        densities="at_once",
        timing=Timing(every=10, at_start=True, at_last=True),
        inactive_buffers="mask",
        memory="backward",
        backward=0.1,
        gradient_terms=lambda method: (ExplorationPenalty(1e-5, method.density),),
    ),
    Method("snip", "Lee, Ajanthan & Torr 2019, section 4.", score="snip"),
    Method("grasp", "Wang, Zhang & Grosse 2020, section 4.", score="grasp", score_batches="balanced"),
    Method("synflow", "Tanaka et al. 2020, section 6.", score="synflow", score_rounds=100),
    Method(
        "gradual",
        "Gradual magnitude pruning (Zhu & Gupta 2018, section 3).",
        start=1.0,
        densities="cubic",
        timing=Timing(every=100, first=0.2, last=0.75, at_last=True),
        memory="active",
        inactive_buffers="mask",
    ),
    Method(
        "compressed-sparse",
        "Gradual pruning of a trained network (Mostafa & Wang 2019, section 4).",
        start=1.0,
        densities="cubic",
        timing=Timing(epochs=2, last=0.8, at_last=True),
        inactive_buffers="mask",
        rounds=Rounds(prunings=0, retraining=0.5, learning_rate=0.2),
    ),
    Method(
        "han",
        "Train, prune by magnitude, retrain (Han et al. 2015, section 3).",
        rounds=Rounds(prunings=3, retraining=0.5, learning_rate=0.1),
    ),
    Method(
        "lottery-ticket",
        "Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, section 2).",
        rounds=Rounds(prunings=10, rewind=0.0),
    ),
    Method(
        "dynamic-network-surgery",
        "Dynamic network surgery (Guo, Yao & Chen 2016, section 3).",
        start=1.0,
        update=lambda method: Hysteresis(method.density, method.distribution),
        timing=Timing(every=1, last=0.5, chance=_often_at_first),
        memory="all",
        rounds=Rounds(prunings=0),
    ),
    Method(
        "optimal-brain-damage",
        "LeCun, Denker & Solla 1990, section 2.",
        score_batches=50,
        rounds=Rounds(
            prunings=5, score="optimal_brain_damage", scope="global", retraining=0.5, learning_rate=0.1
        ),
    ),
    Method(
        "layer-wise-obs",
        "Layer-wise optimal brain surgeon (Dong, Chen & Pan 2017, section 3).",
        distribution="erk",
        score_batches=50,
        rounds=Rounds(prunings=5, score="layerwise_obs", compensate=True, retraining=0.25, learning_rate=0.1),
    ),
    Method(
        "learning-compression",
        "Carreira-Perpinan & Idelbayev 2018, section 3.",
        regulariser="learning_compression",
        options=lambda method: {"level": method.density},
        rounds=Rounds(prunings=0),
    ),
    Method(
        "soft-weight-sharing",
        "Ullrich, Meeds & Welling 2017, section 3.",
        regulariser="soft_weight_sharing",
        rounds=Rounds(prunings=0),
    ),
    Method(
        "variational-dropout",
        "Molchanov, Ashukha & Vetrov 2017, section 4.",
        regulariser="variational_dropout",
    ),
    Method(
        "hard-concrete",
        "L0 regularisation (Louizos, Welling & Kingma 2018, section 2).",
        regulariser="hard_concrete",
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def method(name: str, /, **changes: Any) -> Method:
    """A method by name, with other values for some of its fields.

    Args:
        name: one of ``sparsefx.methods.METHODS``.
        **changes: any field of :class:`Method`, its timing's (``every``, ``first``, ``last`` ...) and its
            rounds' (``prunings``, ``rewind`` ...).

    Raises:
        ArgumentError: the method or a field is unknown, or a value cannot be used.

    Example:
        >>> method("rigl", density=0.05, every=200).name
        'rigl'
    """
    if not isinstance(name, str):
        raise ArgumentError(f"method must be a name such as 'rigl', not {name!r}")
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name].with_(**changes)
