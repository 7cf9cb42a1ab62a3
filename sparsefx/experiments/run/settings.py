"""What one run is: network, data, method, recipe and seed, and where it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sparsefx._common.registry import described
from sparsefx._common.values import check_count
from sparsefx.errors import ArgumentError
from sparsefx.experiments.networks import Network, network
from sparsefx.experiments.run.recipes.papers import recipe_named
from sparsefx.experiments.run.recipes.recipe import Recipe, shortened
from sparsefx.experiments.run.recipes.tuning import NETWORK_TUNING, TUNING
from sparsefx.methods import Method, method

_CYCLE_FIELDS = {"prune_rate": "prune_rate", "prune_decay": "decay", "cycle_every": "every"}
"""Fields of a recipe that are sparse momentum's, and what a method calls them."""


@dataclass(frozen=True)
class Settings:
    """One run, fully decided.

    Attributes:
        network: the network.
        root: the folder that holds the data.
        method: the method, with its density.
        recipe: how it is trained.
        seed: of initialisation, masks, augmentation and the order of the data.
        options: what is set otherwise than in the method, as plain data.
        tuned: what its own paper sets otherwise for this network, in words.
        shortened: whether it trains for less than the published recipe.
        setting: which layers stay dense, one of the network's settings; by default its first.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...
        precision: of the forward pass: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` by autocast.
        channels_last: keep images in that memory format.
        compile: run the model through ``torch.compile``.
        kernels: ``"dense"``, or ``"auto"`` or ``"sparse"`` to train by sparse kernels on the CPU.
    """

    network: Network
    root: str
    method: Method
    recipe: Recipe
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, str] = field(default_factory=dict)
    shortened: bool = False
    setting: str = ""
    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    kernels: Literal["dense", "auto", "sparse"] = "dense"

    def __post_init__(self) -> None:
        check_count("seed", self.seed, 0)
        if self.seed >= 2**64:
            raise ArgumentError(f"seed={self.seed!r} has more than 64 bits")
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise ArgumentError(f"precision={self.precision!r} is not float32, bfloat16 or float16")
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise ArgumentError(f"device={self.device!r} is not a device: {error}") from error
        if kind not in ("cpu", "cuda"):
            raise ArgumentError(f"device={self.device!r}: runs are for 'cpu' and 'cuda'")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ArgumentError(f"device={self.device!r}: this machine has no CUDA; pass device='cpu'")
        if self.kernels != "dense" and (self.device != "cpu" or self.compile or self.precision != "float32"):
            raise ArgumentError(
                f"kernels={self.kernels!r}: sparse kernels train on device='cpu' in precision='float32' "
                f"without compile, not on {self.device!r} in {self.precision!r}"
            )
        if not self.setting:
            object.__setattr__(self, "setting", next(iter(self.network.dense)))
        self.network.dense_layers(self.setting)

    def configuration(self, data: str) -> dict[str, Any]:
        """What the ledger files a run under.

        Args:
            data: the data set's name, which says where a copy is not the original.
        """
        return {
            "network": self.network.name,
            "data": data,
            "method": self.method.name,
            "options": dict(self.options),
            "density": float(self.method.density),
            "seed": self.seed,
            "recipe": self._plain_recipe(),
            "shortened": self.shortened,
        }

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the forward pass has the precision asked for."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, getattr(torch, self.precision))

    def formatted(self, inputs: Tensor) -> Tensor:
        """Inputs (N, C, H, W) in the memory format asked for."""
        return inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs

    def _plain_recipe(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self.recipe)
        extras: dict[str, Any] = {"setting": self.setting, "precision": self.precision}
        if self.kernels != "dense":
            extras["kernels"] = self.kernels
        if self.tuned:
            extras["tuned"] = dict(self.tuned)
        return {**fields, **extras, "milestones": list(self.recipe.milestones)}


def settings(
    network_name: str,
    root: str,
    *,
    data: str = "",
    method_name: str = "sparse-momentum",
    density: float | None = None,
    seed: int = 0,
    recipe_name: str = "",
    options: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    **where: Any,
) -> Settings:
    """Decide what names and changes mean.

    Args:
        network_name: a name in ``NETWORKS``, in any spelling that ``network_name`` reads.
        root: the folder that holds the data.
        data: the data set's name; by default the recipe's.
        method_name: a name in ``sparsefx.METHODS``.
        density: fraction of the maskable weights; the method's own by default.
        seed: of everything random.
        recipe_name: a name in ``RECIPES``; the data set's own by default.
        options: other values for fields of the method.
        changes: other values for fields of the recipe; fewer ``epochs`` shorten it, milestones in proportion.
        where: ``setting``, ``device``, ``precision``, ``channels_last``, ``compile`` and ``kernels`` of
            :class:`Settings`.

    Raises:
        ArgumentError: a name is unknown or a value cannot be used.

    Example:
        >>> settings("lenet-300-100", "data", data="mnist", density=0.05).recipe.epochs
        100
    """
    options, changes = dict(options or {}), dict(changes or {})
    chosen_network = network(network_name)
    if not (data or recipe_name):
        raise ArgumentError("neither data nor recipe is given; pass data='mnist', 'cifar10' or 'imagenet'")
    for name in ("density", "name"):
        if name in options:
            raise ArgumentError(f"option {name}={options[name]!r} has an argument of its own: {name}")
    published = recipe_named(recipe_name or data)
    if data and published.data != data:
        raise ArgumentError(f"recipe {recipe_name!r} is for {published.data}, not for data={data!r}")
    _check_cycle_fields(method_name, changes)
    chosen = _changed(published, {**TUNING.get(method_name, {}), **changes})
    own = {"prune_rate": chosen.prune_rate, "decay": chosen.prune_decay}
    if chosen.cycle_every is not None:
        own["every"] = chosen.cycle_every
    taken = {**own, **options} if method_name == "sparse-momentum" else options
    tuned = NETWORK_TUNING.get((method_name, chosen_network.name), {})
    taken = {**tuned, **taken}
    taken = {"explores": True, **taken}  # a byte a weight, and the ledger has a column for it
    if density is not None:
        taken["density"] = density
    return Settings(
        network=chosen_network,
        root=root,
        method=method(method_name, **taken),
        recipe=chosen,
        seed=seed,
        options=options,
        tuned={name: described(value) for name, value in tuned.items() if name not in options},
        shortened=chosen.epochs < published.epochs,
        **where,
    )


def _check_cycle_fields(method_name: str, changes: Mapping[str, Any]) -> None:
    """Refuse to file a run under values that only the recipe's own method takes."""
    for name, option in _CYCLE_FIELDS.items():
        if name in changes and method_name != "sparse-momentum":
            raise ArgumentError(
                f"{name}={changes[name]!r} is of the recipe of sparse-momentum, not of method "
                f"{method_name!r}; its own are options: {option}=..."
            )


def _changed(published: Recipe, changes: Mapping[str, Any]) -> Recipe:
    epochs = changes.get("epochs", published.epochs)
    isolated = {name: value for name, value in changes.items() if name != "epochs"}
    if epochs == published.epochs:
        return published.with_(**isolated)
    published.with_(epochs=epochs)  # so that one that cannot be is told
    return shortened(published, epochs).with_(**isolated)
