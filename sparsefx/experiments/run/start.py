"""How a run starts: the network, its optimizer, and the method at work on it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from sparsefx.errors import ArgumentError
from sparsefx.experiments.data import Batch, Data, epoch_generator
from sparsefx.experiments.networks.thin_dense import sparse_parameters, thin_width
from sparsefx.experiments.run.recipes.recipe import Recipe
from sparsefx.experiments.run.settings import Settings
from sparsefx.methods import METHODS, Training
from sparsefx.scores import balanced_batch


def start_training(settings: Settings, data: Data, epoch_steps: int) -> Training:
    """A new network of the settings' seed, and the method at work on it.

    Args:
        settings: what to run.
        data: the data set.
        epoch_steps: optimizer steps of an epoch.

    Raises:
        ArgumentError: the network does not take the data, or the method cannot be run so.
    """
    _check_shape(settings, data)
    _check_last_batch(settings.recipe, len(data.train))
    torch.manual_seed(settings.seed)
    model = settings.network.build(classes=data.classes, width=_width(settings, data.classes))
    model = model.to(settings.device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Training(
        METHODS["dense"] if settings.method.first_masks.width else settings.method,
        model,
        lambda parameters: make_optimizer(settings.recipe, parameters),
        steps=settings.recipe.epochs * epoch_steps,
        epoch_steps=epoch_steps,
        dense=settings.network.dense_layers(settings.setting),
        batches=_score_batches(settings, data),
        samples=len(data.train),
        generator=torch.Generator().manual_seed(settings.seed),
        kernels=settings.kernels,
        example_inputs=next(iter(data.train.batches(settings.recipe.batch_size)))[:1],
    )


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The recipe's optimizer; where norms take no weight decay, biases, as small, take none either."""
    held = list(parameters)
    groups: list[dict[str, Any]] = [{"params": held}]
    if not recipe.decay_norms:
        matrices, vectors = ([p for p in held if (p.dim() > 1) is large] for large in (True, False))
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    if recipe.optimizer == "adam":
        return Adam(groups, recipe.lr, (recipe.momentum, 0.999), weight_decay=recipe.weight_decay)
    nesterov = recipe.nesterov and recipe.momentum > 0
    # On a CPU one pass over a small network's weights takes a third of the time of several, up to rounding.
    fused = True if all(parameter.device.type == "cpu" for parameter in held) else None
    return SGD(
        groups, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=nesterov, fused=fused
    )


def _width(settings: Settings, classes: int) -> float:
    """The network's width factor: 1, or for thin dense networks that of the sparse one's size."""
    network = settings.network
    if not settings.method.first_masks.width:
        return 1.0
    with torch.device("meta"):
        full = network.build(classes=classes)
    size = sparse_parameters(full, settings.method.density, dense=network.dense_layers(settings.setting))
    return thin_width(network, size, classes=classes)


def _score_batches(settings: Settings, data: Data) -> list[Batch]:
    """What a score that needs data is given: the first batches of the first epoch, not augmented."""
    batches = data.train.batches(settings.recipe.batch_size, epoch_generator(settings.seed, 0))
    wanted = settings.method.score_batches
    return [balanced_batch(batches)] if wanted == "balanced" else list(islice(batches, wanted))


def _check_last_batch(recipe: Recipe, samples: int) -> None:
    """Refuse a last batch of one sample, which has no variance to normalise by."""
    if samples % recipe.batch_size == 1 and not recipe.drop_last and recipe.batch_size > 1:
        raise ArgumentError(
            f"batch_size={recipe.batch_size!r} leaves one of {samples} training samples for the last batch; "
            "choose another one, or drop_last=True"
        )


def _check_shape(settings: Settings, data: Data) -> None:
    """Refuse data that the network does not take."""
    inputs, _ = next(iter(data.test.batches(1)))
    if tuple(inputs.shape[1:]) != settings.network.input_shape:
        raise ArgumentError(
            f"network {settings.network.name!r} takes inputs {settings.network.input_shape}, "
            f"data={data.name!r} has {tuple(inputs.shape[1:])}"
        )
