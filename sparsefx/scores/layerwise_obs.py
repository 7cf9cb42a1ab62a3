"""Layer-wise Optimal Brain Surgeon: the error when a weight goes and its neuron adapts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sparsefx.masking.masks import masked_weights
from sparsefx.scores.layer_calls import weight_rows
from sparsefx.scores.scoring_context import ScoringContext
from sparsefx.scores.second_moments import second_moments


def layerwise_obs(context: ScoringContext, *, damping: float = 1e-5) -> dict[str, Tensor]:
    """``w_q^2 / (2 [H^-1]_qq)`` with H the second moment of the layer's inputs (Dong et al. 2017).

    That is the least squared error ``mean |change of the layer's output|^2 / 2`` that removing the
    weight costs when its neuron's other active weights are changed to make up for it. All scores of
    a layer are taken on its inputs and weights as they are; a neuron's inactive weights stay out of H.

    Args:
        context: training inputs; neither targets nor loss count. Evaluation mode.
        damping: this fraction of H's mean diagonal is added to its diagonal.

    Returns:
        For each masked weight's name a float64 tensor of its shape, 0 where the weight is inactive.

    Raises:
        ArgumentError: there are no batches, or a masked layer is neither Linear nor Conv, or not called.
    """
    with context.scratch(training=False) as model:
        moments = second_moments(context, model, damping)
        scores = {}
        for layer in masked_weights(model):
            weight = weight_rows(layer, layer.weight.detach().double())
            rows = _saliencies(weight, weight_rows(layer, layer.mask), moments[layer.name])
            scores[layer.name] = rows.view(layer.mask.shape)
        return scores


def compensated_weights(
    context: ScoringContext, keep: Mapping[str, Tensor], *, damping: float = 1e-5
) -> dict[str, Tensor]:
    """Weights that reproduce the layers' present outputs best when only some are kept.

    Each neuron's kept weights move to the exact minimum of its output's mean squared error,
    ``w_K + H_KK^-1 H_KQ w_Q`` with K what it keeps and Q what it loses: the surgeon's update (Dong et
    al. 2017) for all of Q at once. Biases stay.

    Args:
        context: training inputs; neither targets nor loss count. Evaluation mode.
        keep: for each masked weight's name a bool tensor of its shape, part of its mask.
        damping: this fraction of H's mean diagonal is added to its diagonal.

    Returns:
        For each masked weight's name its new values, 0 where it is not kept.

    Raises:
        ArgumentError: as :func:`layerwise_obs`.
    """
    with context.scratch(training=False) as model:
        moments = second_moments(context, model, damping)
        weights = {}
        for layer in masked_weights(model):
            old = weight_rows(layer, layer.weight.detach().double())
            new = _refitted(old, weight_rows(layer, keep[layer.name]), moments[layer.name])
            weights[layer.name] = new.view(layer.mask.shape).to(layer.weight.dtype)
        return weights


def _saliencies(weight: Tensor, mask: Tensor, moment: Tensor) -> Tensor:
    scores = torch.zeros_like(weight)
    for group, neurons, active in _blocks(mask):
        block = moment[group][active][:, active]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(block)).diagonal()
        at = (group, neurons.unsqueeze(1), active)
        scores[at] = weight[at].square() / (2 * inverse)
    return scores


def _refitted(weight: Tensor, keep: Tensor, moment: Tensor) -> Tensor:
    lost = (weight * ~keep) @ moment
    new = weight * keep
    for group, neurons, kept in _blocks(keep):
        factor = torch.linalg.cholesky(moment[group][kept][:, kept])
        at = (group, neurons.unsqueeze(1), kept)
        new[at] += torch.cholesky_solve(lost[at].T, factor).T
    return new


def _blocks(mask: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The neurons of each group (groups, neurons, fan in) that share a mask, and its True positions."""
    for group, rows in enumerate(mask):
        patterns, pattern_of = rows.unique(dim=0, return_inverse=True)
        for index, pattern in enumerate(patterns):
            if bool(pattern.any()):
                yield group, (pattern_of == index).nonzero().squeeze(1), pattern.nonzero().squeeze(1)
