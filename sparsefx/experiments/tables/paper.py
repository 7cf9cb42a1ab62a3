"""The tables and figures of Dettmers & Zettlemoyer (2019), as tables of queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefx.experiments.tables import published
from sparsefx.experiments.tables.cells import Cell
from sparsefx.experiments.tables.published import Published
from sparsefx.experiments.tables.query import Query
from sparsefx.experiments.tables.table import Table

METHODS: dict[str, str] = {
    "dense": "dense",
    "optimal-brain-damage": "Optimal Brain Damage",
    "layer-wise-obs": "layer-wise OBS",
    "learning-compression": "learning-compression",
    "snip": "SNIP",
    "soft-weight-sharing": "soft weight-sharing",
    "dynamic-network-surgery": "Dynamic Network Surgery",
    "han": "Han et al.",
    "variational-dropout": "sparse variational dropout",
    "static": "static sparse",
    "thin-dense": "thin dense",
    "deep-r": "DEEP-R",
    "compressed-sparse": "compressed sparse",
    "set": "SET",
    "dsr": "DSR",
    "rigl": "RigL",
    "snfs-erk": "SNFS + ERK",
    "sparse-momentum": "sparse momentum",
    "granet": "GraNet",
}
"""The methods of the tables, in the order of their rows: name in the ledger -> title."""

NETWORKS: dict[str, str] = {
    "lenet-300-100": "LeNet 300-100",
    "lenet5-caffe": "LeNet-5 Caffe",
    "alexnet-s": "AlexNet-s",
    "alexnet-b": "AlexNet-b",
    "vgg16-c": "VGG16-C",
    "vgg16-d": "VGG16-D",
    "vgg16-like": "VGG16-like",
    "wrn-16-8": "WRN-16-8",
    "wrn-16-10": "WRN-16-10",
    "wrn-22-8": "WRN-22-8",
    "wrn-28-2": "WRN-28-2",
    "resnet-50": "ResNet-50",
}
"""Name in the ledger -> title."""

ABLATIONS: dict[str, dict[str, str]] = {
    "momentum, momentum": {},
    "momentum, random": {"grow": "random"},
    "none, momentum": {"redistribute": "none"},
    "none, random": {"redistribute": "none", "grow": "random"},
}
"""Redistribution and growth -> the options of sparse momentum that make them."""

# Their density is what comes out, not what is asked for.
_OUTCOMES = ("soft-weight-sharing", "dynamic-network-surgery", "han", "variational-dropout")


def tables() -> list[Table]:
    """Tables 1 to 5, those behind Figures 2 and 3, and what does better than the paper."""
    return [table_1(), table_2(), table_3(), table_4(), table_5(), *figure_2(), figure_3(), beyond()]


def table_1() -> Table:
    """Compression of the MNIST networks."""
    exhibit = published.TABLE_1
    wanted = [
        (method, density)
        for method in METHODS
        for density in sorted({d for numbers in exhibit.values() for d in numbers.get(method, {})})
    ]
    return Table(
        "table1",
        "Table 1: MNIST, test error, %",
        "method, weights",
        tuple(NETWORKS[network] for network in exhibit),
        tuple(
            (_row(method, density), tuple(_compression(network, method, density) for network in exhibit))
            for method, density in wanted
        ),
    )


def table_2() -> Table:
    """Sparse momentum and SNIP on CIFAR-10."""
    methods = ("dense", "snip", "sparse-momentum")
    rows = []
    for network, (density, numbers) in published.TABLE_2.items():
        densities = {"dense": 1.0}
        cells = [
            Cell(
                Query(network, "cifar10", method, densities.get(method, density)),
                published=numbers[method],
            )
            for method in methods
        ]
        rows.append((f"{NETWORKS[network]}, {_percent(density)}", tuple(cells)))
    return Table(
        "table2",
        "Table 2: CIFAR-10, test error, %",
        "network, weights",
        tuple(METHODS[method] for method in methods),
        tuple(rows),
        "The code of the paper's first version seems to have left some convolutions of the VGG16s and "
        "AlexNets dense, so a network that is sparse throughout compares with the second version first.",
    )


def table_3() -> Table:
    """ResNet-50 on ImageNet."""
    known = {(method, density) for method, numbers in published.TABLE_3.items() for density in numbers}
    known |= published.TABLE_3_BY_OTHERS.keys()
    wanted = sorted(known, key=lambda key: (list(METHODS).index(key[0]), key[1]))
    return Table(
        "table3",
        "Table 3: ResNet-50 on ImageNet, test accuracy, %",
        "method, weights",
        ("top-1", "top-5"),
        tuple((_row(method, density), _imagenet(method, density)) for method, density in wanted),
        "The paper's rows of sparse momentum use a tuned recipe (dense: 77.0) with all layers sparse, its "
        "others a baseline recipe (dense: 74.9) with some layers dense; the dense row is quoted from others.",
    )


def table_4() -> Table:
    """Estimated speed-ups of sparse momentum."""
    metrics = (
        "dense convolution",
        "sparse convolution",
        "dense convolution, FLOPs",
        "sparse convolution, FLOPs",
    )
    rows = []
    for network, (density, dense, sparse) in published.TABLE_4.items():
        query = Query(network, "cifar10", "sparse-momentum", density)
        numbers = ((dense,), (sparse,), (), ())
        cells = [Cell(query, metric, number) for metric, number in zip(metrics, numbers, strict=True)]
        rows.append((f"{NETWORKS[network]}, {_percent(density)}", tuple(cells)))
    return Table(
        "table4",
        "Table 4: estimated speed-up over dense convolutions, factor",
        "network, weights",
        ("dense conv., run time", "sparse conv., run time", "dense conv., FLOPs", "sparse conv., FLOPs"),
        tuple(rows),
        "By run time as the paper's code estimates it, with the density of the convolutions' inputs; by "
        "FLOPs from the weights alone. The paper's second version speaks of at most 5.61, otherwise defined.",
    )


def table_5() -> Table:
    """Ablations of sparse momentum."""
    networks = list(published.TABLE_5["momentum, momentum"])
    rows = []
    for ablation, numbers in published.TABLE_5.items():
        cells = [_ablation(network, ABLATIONS[ablation], numbers[network]) for network in networks]
        rows.append((ablation, tuple(cells)))
    return Table(
        "table5",
        "Table 5: ablations of sparse momentum at 5% weights, test error, %",
        "redistribution, growth",
        tuple(NETWORKS[network] for network in networks),
        tuple(rows),
        "From the second row on: differences to the first.",
    )


def figure_2() -> tuple[Table, Table]:
    """Methods over densities."""
    left = _over_densities("figure2-left", "lenet-300-100", "mnist", "MNIST", published.FIGURE_2_LEFT)
    right = _over_densities("figure2-right", "wrn-28-2", "cifar10", "CIFAR-10", published.FIGURE_2_RIGHT)
    return left, right


def figure_3() -> Table:
    """How specialised on a class the channels are."""
    rows = []
    for network, density in published.FIGURE_3.items():
        queries = [Query(network, "cifar10", "dense", 1.0)]
        queries.append(Query(network, "cifar10", "sparse-momentum", density))
        cells = tuple(Cell(query, "specialisation") for query in queries)
        rows.append((f"{NETWORKS[network]}, {_percent(density)}", cells))
    return Table(
        "figure3",
        "Figure 3: mean class specialisation of channels, 0.1 to 1",
        "network, weights",
        ("dense", "sparse momentum"),
        tuple(rows),
        "The paper shows histograms, without numbers: those of sparse networks lie lower.",
    )


def beyond() -> Table:
    """The best that the library has at the paper's weights and epochs, beside sparse momentum."""
    networks, methods = ("lenet-300-100", "lenet5-caffe"), ("sparse-momentum", "granet")
    rows = []
    for density in (0.01, 0.02, 0.05):
        numbers = {name: (published.TABLE_1[name]["sparse-momentum"][density],) for name in networks}
        cells = [
            Cell(Query(name, "mnist", method, density), published=numbers[name])
            for name in networks
            for method in methods
        ]
        rows.append((_percent(density), tuple(cells)))
    return Table(
        "beyond",
        "Better than the paper: MNIST, test error, %",
        "weights",
        tuple(f"{NETWORKS[name]}, {METHODS[method]}" for name in networks for method in methods),
        tuple(rows),
        "Beside every mean the paper's of sparse momentum. Recipe, epochs and final weights are the same; "
        "GraNet begins dense, so that it takes more arithmetic and memory to train. It was chosen by the "
        "error on validation samples.",
    )


def _compression(network: str, method: str, density: float) -> Cell | None:
    number = published.TABLE_1[network].get(method, {}).get(density)
    if number is None:
        return None
    query = Query(
        network,
        "mnist",
        method,
        density,
        any_density=method in _OUTCOMES,
        any_options=method != "sparse-momentum",  # whose options are the ablations of table 5
    )
    return Cell(query, published=(number,))


def _imagenet(method: str, density: float) -> tuple[Cell, Cell]:
    query = Query("resnet-50", "imagenet", method, density)
    both = published.TABLE_3.get(method, {}).get(density)
    first, fifth = ((both[0],), (both[1],)) if both else ((), ())
    by_others = published.TABLE_3_BY_OTHERS.get((method, density))
    top_1 = (*first, by_others) if by_others else first
    return Cell(query, "accuracy", top_1), Cell(query, "top-5 accuracy", fifth)


def _ablation(network: str, options: Mapping[str, Any], number: Published) -> Cell:
    data = "mnist" if network.startswith("lenet") else "cifar10"
    whole = Query(network, data, "sparse-momentum", 0.05)
    query = Query(network, data, "sparse-momentum", 0.05, options)
    return Cell(query, published=(number,), baseline=whole if options else None)


def _over_densities(
    name: str, network: str, data: str, data_title: str, exhibit: Mapping[str, Mapping[float, Published]]
) -> Table:
    densities = sorted({density for numbers in exhibit.values() for density in numbers})
    rows = []
    for method in sorted(exhibit, key=list(METHODS).index):
        numbers = exhibit[method]
        cells = [
            Cell(Query(network, data, method, density), "accuracy", (numbers[density],))
            if density in numbers
            else None
            for density in densities
        ]
        rows.append((METHODS[method], tuple(cells)))
    side = name.partition("-")[2]
    return Table(
        name,
        f"Figure 2, {side}: {NETWORKS[network]} on {data_title}, test accuracy, %",
        "method",
        tuple(map(_percent, densities)),
        tuple(rows),
        "The published curves are of the setting of Mostafa & Wang (2019): no validation split, and for the "
        "left one perhaps a network with batch norms.",
    )


def _row(method: str, density: float) -> str:
    return f"{METHODS[method]}, {_percent(density)}"


def _percent(density: float) -> str:
    return f"{100 * density:g}%"
