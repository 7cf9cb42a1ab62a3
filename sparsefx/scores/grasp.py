"""GraSP: keep what the gradient flow, that is how fast the loss will fall, depends on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError
from sparsefx.masking.masks import apply_masks, masked_weights
from sparsefx.scores.derivatives import gradient, hessian_vector_product
from sparsefx.scores.scoring_context import Batch, ScoringContext


def grasp(
    context: ScoringContext,
    *,
    temperature: float = 200.0,
    parts: int = 2,
    training: bool = True,
    reinitialise_linear: bool = False,
) -> dict[str, Tensor]:
    """``w * (H g)``: what a weight adds to the gradient's squared norm (Wang et al. 2020).

    ``g`` is the gradient and ``H`` the Hessian of the loss by all masked weights. The paper removes
    the largest of ``-w * (H g)``; with the sign turned, higher is more worth keeping, as elsewhere.

    Args:
        context: one balanced batch is what the authors use (:func:`balanced_batch`); the loss takes the
            model's output, which must be a tensor.
        temperature: the output is divided by it before the loss; large ones make the softmax of an
            untrained network flat.
        parts: how many pieces each batch is run in, which is the authors' way to save memory; in
            training mode each piece has its own batch statistics.
        training: run the model in training mode, as the authors do.
        reinitialise_linear: score with linear weights drawn anew by Xavier's normal rule from
            ``context.generator``, as the authors' code does; those of the model stay.

    Returns:
        For each masked weight's name a tensor of its shape, of either sign.

    Raises:
        ArgumentError: there are no batches.
    """
    pieces = [
        piece
        for inputs, targets in context.data()
        for piece in zip(inputs.chunk(parts), targets.chunk(parts), strict=True)
    ]
    cooled = replace(
        context, batches=pieces, loss=lambda output, target: context.loss(output / temperature, target)
    )
    with context.scratch(training=training) as model:
        if reinitialise_linear:
            _reinitialise_linear(model, context.generator)
        layers = masked_weights(model)
        weights = [layer.weight for layer in layers]
        flow = hessian_vector_product(cooled, model, weights, gradient(cooled, model, weights))
        return {
            layer.name: layer.weight.detach() * change for layer, change in zip(layers, flow, strict=True)
        }


def balanced_batch(batches: Iterable[Batch], per_class: int = 10) -> Batch:
    """The first so many examples of every class, the classes taking turns.

    Args:
        batches: pairs of inputs (n, ...) and class numbers (n,); gone through once.
        per_class: examples of each class.

    Returns:
        Inputs (classes * per_class, ...) and their class numbers.

    Raises:
        ArgumentError: a class has fewer examples.

    Example:
        >>> x, y = torch.arange(6.0), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> balanced_batch([(x, y)], per_class=2)
        (tensor([0., 3., 1., 4.]), tensor([0, 1, 0, 1]))
    """
    found: dict[int, list[Tensor]] = defaultdict(list)
    for inputs, targets in batches:
        for example, label in zip(inputs, targets.tolist(), strict=True):
            if len(found[label]) < per_class:
                found[label].append(example)
    short = sorted(label for label, examples in found.items() if len(examples) < per_class)
    if short or not found:
        raise ArgumentError(
            f"per_class={per_class} is more than batches has of class {short}; lower it or pass more data"
        )
    labels = sorted(found)
    inputs = torch.stack([found[label][turn] for turn in range(per_class) for label in labels])
    return inputs, torch.tensor(labels, device=inputs.device).repeat(per_class)


def _reinitialise_linear(model: nn.Module, generator: torch.Generator | None) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, generator=generator)
    apply_masks(model)
