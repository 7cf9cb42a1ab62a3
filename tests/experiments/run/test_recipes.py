"""The recipes of the papers, against numbers worked out by hand."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from sparsefx.errors import ArgumentError
from sparsefx.experiments.data import DATA
from sparsefx.experiments.run.recipes.papers import RECIPES, recipe_named
from sparsefx.experiments.run.recipes.recipe import Recipe, learning_rate, shortened
from sparsefx.experiments.run.start import make_optimizer

# recipe: training samples, steps an epoch, steps in all
STEPS = {
    "mnist": (54_000, 540, 54_000),
    "mnist-dynamic-sparse": (60_000, 600, 60_000),
    "cifar10": (45_000, 352, 88_000),
    "cifar10-dynamic-sparse": (50_000, 500, 100_000),
    "cifar10-dynamic-sparse-long": (50_000, 500, 200_000),
    "imagenet": (1_281_167, 5_005, 500_500),
    "imagenet-long": (1_281_167, 5_005, 1_001_000),
    "imagenet-tuned": (1_281_167, 5_004, 500_400),
}

# recipe: (step, learning rate) at the first and last step of each stage
RATES = {
    "mnist": [(0, 0.1), (24_999, 0.1), (25_000, 0.01), (49_999, 0.01), (50_000, 1e-3), (53_999, 1e-3)],
    "cifar10": [(0, 0.1), (29_999, 0.1), (30_000, 0.01), (59_999, 0.01), (60_000, 1e-3), (87_999, 1e-3)],
    "cifar10-dynamic-sparse": [
        *[(0, 0.1), (29_999, 0.1), (30_000, 0.02), (60_000, 0.004)],
        *[(79_999, 0.004), (80_000, 0.0008), (99_999, 0.0008)],
    ],
    "cifar10-dynamic-sparse-long": [(59_999, 0.1), (60_000, 0.02), (110_000, 0.004), (175_000, 0.0008)],
    "imagenet": [(150_149, 0.1), (150_150, 0.01), (300_300, 1e-3), (450_449, 1e-3), (450_450, 1e-4)],
    "imagenet-long": [(300_299, 0.1), (300_300, 0.01), (600_600, 1e-3), (900_900, 1e-4)],
    "imagenet-tuned": [(150_119, 0.1), (150_120, 0.01), (300_240, 1e-3), (400_319, 1e-3), (400_320, 1e-4)],
}
RATES["mnist-dynamic-sparse"] = RATES["mnist"]


def test_every_recipe_is_in_the_tables() -> None:
    assert set(STEPS) == set(RATES) == set(RECIPES)
    assert {entry.data for entry in RECIPES.values()} == set(DATA)
    assert all(entry.source for entry in RECIPES.values())


@pytest.mark.parametrize("name", RECIPES)
def test_steps(name: str) -> None:
    samples, per_epoch, total = STEPS[name]
    assert recipe_named(name).steps_per_epoch(samples) == per_epoch
    assert recipe_named(name).epochs * per_epoch == total


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rates(name: str) -> None:
    per_epoch = STEPS[name][1]
    for step, rate in RATES[name]:
        assert learning_rate(recipe_named(name), step, per_epoch) == pytest.approx(rate, rel=1e-12)


def test_what_else_the_recipes_say() -> None:
    mnist, cifar, tuned = recipe_named("mnist"), recipe_named("cifar10"), recipe_named("imagenet-tuned")
    assert (mnist.validation, cifar.validation, tuned.validation) == (6_000, 5_000, 0)
    assert (mnist.augment, cifar.augment, tuned.augment) == (False, True, True)
    assert {entry.weight_decay for entry in RECIPES.values() if entry.data != "imagenet"} == {5e-4}
    assert (tuned.weight_decay, tuned.decay_norms, tuned.nesterov) == (1e-4, False, False)
    assert (tuned.label_smoothing, tuned.prune_rate, recipe_named("imagenet").prune_rate) == (0.1, 0.5, 0.2)
    assert {entry.momentum for entry in RECIPES.values()} == {0.9}
    assert mnist.normalisation.mean == (0.1307,)
    assert recipe_named("cifar10-dynamic-sparse").normalisation.std[0] == pytest.approx(63 / 255)
    assert (
        recipe_named("cifar10-dynamic-sparse").validation,
        recipe_named("mnist-dynamic-sparse").validation,
    ) == (0, 0)


def test_warmup_rises_in_a_line_to_the_full_rate() -> None:
    warm = recipe_named("imagenet-tuned").with_(warmup_epochs=5)
    assert learning_rate(warm, 0, 10) == pytest.approx(0.1 / 50)
    assert learning_rate(warm, 24, 10) == pytest.approx(0.05)
    assert [learning_rate(warm, step, 10) for step in (49, 50)] == [0.1, 0.1]


def test_shortened_keeps_the_shape_of_the_schedule() -> None:
    short = shortened(recipe_named("cifar10").with_(warmup_epochs=5), 25)
    assert (short.epochs, short.milestones, short.warmup_epochs) == (25, (3_000, 6_000), 0.5)
    assert shortened(recipe_named("imagenet"), 10).milestones == (3, 6, 9)
    assert shortened(recipe_named("mnist"), 100) == recipe_named("mnist")


@properties()
@given(epochs=st.integers(1, 300), step=st.integers(0, 539))
def test_a_shortened_run_has_the_rate_of_the_same_progress(epochs: int, step: int) -> None:
    """At step ``s`` of ``epochs`` epochs the rate is that of step ``s * 200 / epochs`` of 200."""
    full = recipe_named("cifar10-dynamic-sparse")
    done = step % epochs  # whole epochs: both sides are then exact multiples
    short = shortened(full, epochs)
    expected = sum(done * full.epochs >= milestone * epochs for milestone in full.milestones)
    assert learning_rate(short, done * 500, 500) == pytest.approx(0.1 * 0.2**expected)


def test_with_changes_nothing_else() -> None:
    before = recipe_named("mnist")
    after = before.with_(epochs=3, lr=0.5)
    changed = {
        f.name for f in dataclasses.fields(Recipe) if getattr(before, f.name) != getattr(after, f.name)
    }
    assert changed == {"epochs", "lr"}
    assert (after.epochs, after.lr, before.epochs) == (3, 0.5, 100)


FIELDS = {field.name for field in dataclasses.fields(Recipe)}
INVALID: list[tuple[str, Any]] = [
    ("data", "mnst"),
    *[("epochs", value) for value in (0, 2.5, True)],
    *[("batch_size", 0), ("normalisation", ((0.5,), (0.5,))), ("optimizer", "lamb")],
    *[("lr", value) for value in (0, -1.0, float("nan"), "0.1")],
    *[("milestones", value) for value in ([10], (20, 10), (10, 10), (0, 10), (-5,), 30)],
    *[("milestone_unit", "days"), ("lr_factor", 0), ("warmup_epochs", -1), ("momentum", 1.0)],
    *[("nesterov", 1), ("weight_decay", -1e-4), ("decay_norms", None), ("label_smoothing", 1.0)],
    *[("prune_rate", 1.5), ("prune_decay", "sine"), ("cycle_every", 0), ("augment", "yes")],
    *[("validation", -1), ("drop_last", 0)],
]


@pytest.mark.parametrize(("field", "value"), INVALID)
def test_invalid_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^{field}=.* of a recipe must be "):
        recipe_named("mnist").with_(**{field: value})


def test_every_field_but_names_is_checked() -> None:
    assert {field for field, _ in INVALID} | {"data", "source"} == {
        f.name for f in dataclasses.fields(Recipe)
    }


def test_unknown_names() -> None:
    with pytest.raises(ArgumentError, match="field of a recipe='epoch' is not known; did you mean 'epochs'"):
        recipe_named("mnist").with_(epoch=3)
    with pytest.raises(ArgumentError, match="recipe='cifar' is not known; did you mean 'cifar10'"):
        recipe_named("cifar")


def test_one_pass_over_the_weights_learns_what_several_do():
    chosen, generator = recipe_named("mnist"), torch.Generator().manual_seed(0)
    quick, plain = (torch.nn.Linear(30, 20) for _ in range(2))
    plain.load_state_dict(quick.state_dict())
    fused = make_optimizer(chosen, quick.parameters())
    several = torch.optim.SGD(
        plain.parameters(), chosen.lr, chosen.momentum, weight_decay=chosen.weight_decay, nesterov=True
    )
    for _ in range(20):
        inputs = torch.randn(8, 30, generator=generator)
        for net, optimizer in ((quick, fused), (plain, several)):
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
            optimizer.step()
    assert fused.param_groups[0]["fused"]
    for one, other in zip(quick.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)
