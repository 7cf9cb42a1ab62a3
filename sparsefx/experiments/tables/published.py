"""The published numbers that the tables and figures are set beside, as plain data.

Each exhibit is the one of that number in Dettmers & Zettlemoyer (2019), "Sparse Networks from Scratch:
Faster Training without Losing Performance", arXiv 1907.04840. Keys are the names of networks and methods
and densities as fractions of the maskable weights.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "Dettmers & Zettlemoyer 2019, first version"
LATER = "Dettmers & Zettlemoyer 2019, second version"
CODE = "published code and logs of Dettmers & Zettlemoyer 2019"
REPARAMETERIZATION = (
    "Mostafa & Wang 2019, per-run values in the published code of Dettmers & Zettlemoyer 2019"
)
REPARAMETERIZATION_QUOTED = "Mostafa & Wang 2019, as quoted by Dettmers & Zettlemoyer 2019"
SNIP = "Lee, Ajanthan & Torr 2019, as quoted by Dettmers & Zettlemoyer 2019"
COMPARISON = "as tabulated by Dettmers & Zettlemoyer 2019, first version"
RIGL = "Evci, Gale, Menick, Castro & Elsen 2020"
HE = "He et al. 2016, as quoted by Dettmers & Zettlemoyer 2019"


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        value: the number, in the unit of its table.
        standard_error: of the mean over seeds, if published.
        source: who published it, and where.
        by: the source in a word or two, for a table's cell.
        confirmed: False for a value not checked against its source; tables mark it with a dagger.
        remark: what a reader must know to compare with it.
    """

    value: float
    standard_error: float | None = None
    source: str = PAPER
    by: str = "paper"
    confirmed: bool = True
    remark: str = ""


def _grid(
    source: str, densities: tuple[float, ...], *numbers: float | tuple[float, float]
) -> dict[float, Published]:
    """Published numbers over densities: values, or pairs of value and standard error."""
    pairs = [entry if isinstance(entry, tuple) else (entry, None) for entry in numbers]
    return {
        density: Published(value, error, source)
        for density, (value, error) in zip(densities, pairs, strict=True)
    }


# Table 1: MNIST, test error in %. network -> method -> density.

TABLE_1: dict[str, dict[str, dict[float, Published]]] = {
    "lenet-300-100": {
        "dense": {1.0: Published(1.34, 0.011)},
        "optimal-brain-damage": _grid(COMPARISON, (0.08,), 2.0),
        "layer-wise-obs": _grid(COMPARISON, (0.015,), 2.0),
        "learning-compression": _grid(COMPARISON, (0.01,), 3.2),
        "snip": _grid(COMPARISON, (0.02, 0.05), 2.4, 1.6),
        "soft-weight-sharing": _grid(COMPARISON, (0.044,), 1.9),
        "dynamic-network-surgery": _grid(COMPARISON, (0.018,), 2.0),
        "han": _grid(COMPARISON, (0.083,), 1.6),
        "variational-dropout": _grid(COMPARISON, (0.015,), 1.9),
        "sparse-momentum": {
            **_grid(
                PAPER, (0.01, 0.02, 0.05, 0.2), (2.36, 0.044), (1.99, 0.019), (1.53, 0.020), (1.26, 0.017)
            ),
            **_grid(
                CODE,
                (0.015, 0.018, 0.044, 0.08, 0.083),
                (2.053, 0.032),
                (1.984, 0.053),
                (1.552, 0.027),
                (1.447, 0.014),
                (1.426, 0.020),
            ),
        },
    },
    "lenet5-caffe": {
        "dense": {1.0: Published(0.58, 0.010)},
        "optimal-brain-damage": _grid(COMPARISON, (0.08,), 2.7),
        "layer-wise-obs": _grid(COMPARISON, (0.01,), 2.1),
        "learning-compression": _grid(COMPARISON, (0.01,), 1.1),
        "snip": _grid(COMPARISON, (0.01, 0.02), 1.1, 0.8),
        "soft-weight-sharing": _grid(COMPARISON, (0.005,), 1.0),
        "dynamic-network-surgery": _grid(COMPARISON, (0.009,), 0.9),
        "han": _grid(COMPARISON, (0.093,), 0.8),
        "variational-dropout": _grid(COMPARISON, (0.004,), 0.8),
        "sparse-momentum": {
            **_grid(
                PAPER, (0.01, 0.02, 0.05, 0.2), (0.83, 0.040), (0.76, 0.022), (0.69, 0.021), (0.60, 0.013)
            ),
            **_grid(
                CODE,
                (0.004, 0.005, 0.009, 0.08, 0.093),
                (1.403, 0.088),
                (1.144, 0.024),
                (0.894, 0.033),
                (0.645, 0.019),
                (0.642, 0.030),
            ),
        },
    },
}

# Table 2: CIFAR-10, test error in %. network -> density and, by method, every published number.

_MASKS = "its code seems to have left some convolutions of AlexNet and VGG16 dense; see the second version"


def _cifar(
    density: float,
    dense: tuple[float, float],
    snip: float,
    first: tuple[float, float],
    second: tuple[float, float],
    remark: str = _MASKS,
) -> tuple[float, dict[str, tuple[Published, ...]]]:
    momentum = (
        Published(*first, remark=remark),
        Published(*second, LATER, by="2nd version", confirmed=False),
    )
    return density, {
        "dense": (Published(*dense),),
        "snip": (Published(snip, None, SNIP),),
        "sparse-momentum": momentum,
    }


TABLE_2: dict[str, tuple[float, dict[str, tuple[Published, ...]]]] = {
    "alexnet-s": _cifar(0.10, (12.95, 0.056), 14.99, (14.35, 0.057), (14.27, 0.123)),
    "alexnet-b": _cifar(0.10, (12.85, 0.068), 14.50, (13.93, 0.048), (13.56, 0.094)),
    "vgg16-c": _cifar(0.05, (6.49, 0.038), 7.27, (6.77, 0.056), (7.00, 0.054)),
    "vgg16-d": _cifar(0.05, (6.59, 0.050), 7.09, (6.49, 0.045), (6.69, 0.049)),
    "vgg16-like": _cifar(0.03, (6.50, 0.054), 8.00, (6.71, 0.046), (7.00, 0.077)),
    "wrn-16-8": _cifar(0.05, (4.57, 0.022), 6.63, (5.66, 0.054), (5.62, 0.056), ""),
    "wrn-16-10": _cifar(0.05, (4.45, 0.040), 6.43, (4.59, 0.043), (5.24, 0.052), ""),
    "wrn-22-8": _cifar(0.05, (4.26, 0.032), 5.85, (4.96, 0.042), (4.93, 0.058), ""),
}

# Table 3: ResNet-50 on ImageNet, test accuracy in %. method -> density -> (top-1, top-5); and further
# top-1 values by others. All rows but sparse momentum's use the baseline recipe.

_TUNED = "recipe with label smoothing, all layers sparse; the other rows use the baseline recipe"


def _imagenet(
    ten: tuple[float, float],
    twenty: tuple[float, float],
    source: str = REPARAMETERIZATION_QUOTED,
    remark: str = "",
) -> dict[float, tuple[Published, Published]]:
    return {
        density: (
            Published(first, source=source, remark=remark),
            Published(fifth, source=source, remark=remark),
        )
        for density, (first, fifth) in ((0.1, ten), (0.2, twenty))
    }


TABLE_3: dict[str, dict[float, tuple[Published, Published]]] = {
    "dense": {
        1.0: (
            Published(
                79.3, source=HE, remark="quoted, not trained; with the baseline recipe 74.9, tuned 77.0"
            ),
            Published(94.8, source=HE, remark="quoted, not trained"),
        )
    },
    "static": _imagenet((67.8, 88.4), (71.6, 90.4)),
    "thin-dense": _imagenet((70.7, 89.9), (72.4, 90.9)),
    "deep-r": _imagenet((70.2, 90.0), (71.7, 90.6)),
    "compressed-sparse": _imagenet((70.3, 90.0), (73.2, 91.5)),
    "set": _imagenet((70.4, 90.1), (72.6, 91.2)),
    "dsr": _imagenet((71.6, 90.5), (73.3, 92.4)),
    "sparse-momentum": _imagenet((73.1, 91.5), (74.9, 92.5), PAPER, _TUNED),
}

TABLE_3_BY_OTHERS: dict[tuple[str, float], Published] = {
    ("sparse-momentum", 0.1): Published(72.3, source=RIGL, by="baseline recipe"),
    ("sparse-momentum", 0.2): Published(74.2, source=RIGL, by="baseline recipe"),
    ("static", 0.1): Published(65.8, 0.04, RIGL, by="RigL paper"),
    ("static", 0.2): Published(70.6, 0.06, RIGL, by="RigL paper"),
    ("set", 0.1): Published(69.6, 0.23, RIGL, by="RigL paper"),
    ("set", 0.2): Published(72.9, 0.39, RIGL, by="RigL paper"),
    ("rigl", 0.1): Published(72.0, 0.05, RIGL, by="RigL paper"),
    ("rigl", 0.2): Published(74.6, 0.06, RIGL, by="RigL paper"),
    ("snfs-erk", 0.1): Published(72.9, 0.06, RIGL, by="RigL paper"),
    ("snfs-erk", 0.2): Published(75.2, 0.11, RIGL, by="RigL paper"),
}

# Table 4: estimated speed-up of sparse momentum. network -> (density, dense, sparse convolution).

TABLE_4: dict[str, tuple[float, Published, Published]] = {
    "alexnet-s": (0.10, Published(1.45), Published(4.00)),
    "vgg16-d": (0.05, Published(1.36), Published(3.51)),
    "wrn-28-2": (0.05, Published(1.19), Published(5.82)),
    "wrn-16-10": (0.05, Published(1.16), Published(11.85)),
}

# Table 5: ablations of sparse momentum at 5% weights, test error in %; rows but the first are differences
# to the first. ablation -> network.

TABLE_5: dict[str, dict[str, Published]] = {
    "momentum, momentum": {
        "vgg16-d": Published(6.49, 0.045),
        "lenet-300-100": Published(1.53, 0.020),
        "lenet5-caffe": Published(0.69, 0.021),
    },
    "momentum, random": {
        "vgg16-d": Published(-0.15, 0.054),
        "lenet-300-100": Published(0.07, 0.022),
        "lenet5-caffe": Published(-0.05, 0.011),
    },
    "none, momentum": {
        "vgg16-d": Published(0.79, 0.082),
        "lenet-300-100": Published(0.01, 0.018),
        "lenet5-caffe": Published(0.32, 0.071),
    },
    "none, random": {
        "vgg16-d": Published(0.49, 0.060),
        "lenet-300-100": Published(0.11, 0.020),
        "lenet5-caffe": Published(0.13, 0.013),
    },
}

# Figure 2, test accuracy in %. method -> density.

_LEFT = (0.01, 0.02, 0.03, 0.04, 0.05, 0.10)
_ODD = "looks inconsistent with its values at 1% and 5%; as published"

FIGURE_2_LEFT: dict[str, dict[float, Published]] = {
    "dense": {1.0: Published(98.69, 0.011, CODE)},
    "sparse-momentum": _grid(
        CODE,
        _LEFT,
        (97.53, 0.047),
        (98.20, 0.018),
        (98.30, 0.055),
        (98.42, 0.023),
        (98.53, 0.033),
        (98.67, 0.026),
    ),
    "dsr": _grid(
        REPARAMETERIZATION,
        _LEFT,
        (97.75, 0.016),
        (98.14, 0.064),
        (98.20, 0.023),
        (98.23, 0.023),
        (98.32, 0.038),
        (98.44, 0.045),
    ),
    "set": _grid(
        CODE, _LEFT, (95.80, 0.045), (97.74, 0.071), (98.06, 0.034), (98.10, 0.037), 98.14, (98.39, 0.037)
    ),
    "deep-r": {
        **_grid(CODE, (0.01, 0.05, 0.10), 94.0, 98.06, 98.19),
        0.02: Published(98.21, source=CODE, remark=_ODD),
        0.03: Published(98.22, source=CODE, remark=_ODD),
        0.04: Published(98.30, source=CODE, remark=_ODD),
    },
    "static": _grid(
        REPARAMETERIZATION,
        _LEFT,
        (49.5, 2.6),
        (82.8, 2.9),
        (94.35, 0.13),
        (94.1, 1.9),
        (96.68, 0.01),
        (97.94, 0.04),
    ),
    "compressed-sparse": _grid(
        REPARAMETERIZATION,
        _LEFT,
        (97.47, 0.09),
        (98.12, 0.05),
        (98.34, 0.04),
        (98.42, 0.02),
        (98.47, 0.03),
        (98.55, 0.01),
    ),
}

_RIGHT = (0.1, 0.2, 0.3, 0.4, 0.5)

FIGURE_2_RIGHT: dict[str, dict[float, Published]] = {
    "dense": {1.0: Published(94.70, 0.051, CODE)},
    "sparse-momentum": {
        density: Published(value, None, CODE, remark="standard errors between 0.04 and 0.06")
        for density, value in zip(_RIGHT, (93.61, 94.32, 94.58, 94.68, 94.75), strict=True)
    },
    "dsr": _grid(
        CODE, _RIGHT, (93.59, 0.078), (94.40, 0.051), (94.57, 0.053), (94.66, 0.052), (94.73, 0.046)
    ),
    "set": _grid(
        CODE, _RIGHT, (93.28, 0.055), (94.25, 0.066), (94.40, 0.089), (94.55, 0.064), (94.76, 0.040)
    ),
    "deep-r": _grid(
        CODE, _RIGHT, (91.41, 0.057), (92.36, 0.083), (92.50, 0.095), (92.80, 0.038), (92.92, 0.082)
    ),
    "static": _grid(
        CODE, _RIGHT, (92.04, 0.138), (93.48, 0.047), (93.87, 0.047), (94.26, 0.051), (94.28, 0.062)
    ),
    "compressed-sparse": _grid(
        CODE, _RIGHT, (93.75, 0.035), (94.13, 0.057), (94.53, 0.057), (94.54, 0.023), (94.59, 0.059)
    ),
}

FIGURE_3: dict[str, float] = {"alexnet-s": 0.10, "vgg16-d": 0.05, "wrn-28-2": 0.05}
"""Network -> density of sparse momentum. The figure has histograms and no numbers."""
