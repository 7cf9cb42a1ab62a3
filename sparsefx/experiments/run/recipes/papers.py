"""The recipes of the papers, by name."""

from __future__ import annotations

from sparsefx.errors import unknown_name
from sparsefx.experiments.data import normalise
from sparsefx.experiments.run.recipes.recipe import Recipe

_MNIST = Recipe(
    data="mnist",
    epochs=100,
    batch_size=100,
    milestones=(25_000, 50_000),
    milestone_unit="steps",
    normalisation=normalise.MNIST,
    validation=6_000,
    source="Dettmers & Zettlemoyer 2019, section 4 and code",
)
_CIFAR10 = Recipe(
    data="cifar10",
    epochs=250,
    batch_size=128,
    milestones=(30_000, 60_000),
    milestone_unit="steps",
    augment=True,
    normalisation=normalise.CIFAR10,
    validation=5_000,
    source="Dettmers & Zettlemoyer 2019, section 4 and code",
)
_CIFAR10_DYNAMIC_SPARSE = Recipe(
    data="cifar10",
    epochs=200,
    batch_size=100,
    milestones=(60, 120, 160),
    lr_factor=0.2,
    augment=True,
    normalisation=normalise.CIFAR10_DYNAMIC_SPARSE,
    source=(
        "Mostafa & Wang 2019, appendix and code; whether Dettmers & Zettlemoyer trained their WRN-28-2 by "
        "this or by their own is not stated"
    ),
)
_IMAGENET = Recipe(
    data="imagenet",
    epochs=100,
    batch_size=256,
    milestones=(30, 60, 90),
    weight_decay=1e-4,
    prune_rate=0.2,
    augment=True,
    normalisation=normalise.IMAGENET,
    source="Dettmers & Zettlemoyer 2019, section 4 and code, baseline",
)

RECIPES: dict[str, Recipe] = {
    "mnist": _MNIST,
    "mnist-dynamic-sparse": _MNIST.with_(
        validation=0,
        source=(
            "Mostafa & Wang 2019 hold out no validation samples; the rest, not certain, as Dettmers & "
            "Zettlemoyer 2019"
        ),
    ),
    "cifar10": _CIFAR10,
    "cifar10-dynamic-sparse": _CIFAR10_DYNAMIC_SPARSE,
    "cifar10-dynamic-sparse-long": _CIFAR10_DYNAMIC_SPARSE.with_(
        epochs=400,
        milestones=(120, 220, 350),
        source="Mostafa & Wang 2019, code: static sparse and thin dense, trained twice as long",
    ),
    "imagenet": _IMAGENET,
    "imagenet-long": _IMAGENET.with_(
        epochs=200,
        milestones=(60, 120, 180),
        source="Mostafa & Wang 2019, code: static sparse and thin dense, trained twice as long",
    ),
    "imagenet-tuned": _IMAGENET.with_(
        milestones=(30, 60, 80),
        nesterov=False,
        decay_norms=False,
        label_smoothing=0.1,
        prune_rate=0.5,
        drop_last=True,
        source=(
            "Dettmers & Zettlemoyer 2019, code and logs, tuned; whether with 5 epochs of warm-up is not known"
        ),
    ),
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ArgumentError: no recipe is called so.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]
