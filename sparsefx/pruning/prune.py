"""Prune by score: the best weights stay, over the whole model or layer by layer, at once or in rounds.

Pruning at initialisation (SNIP, GraSP, SynFlow), train-prune-retrain (Han et al. 2015), lottery tickets
and the second-order methods (OBD, layer-wise OBS) differ in the score, in when it is taken and in what
is trained afterwards; what happens to the masks is this.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx._common.distributions import Distribution
from sparsefx._common.registry import resolve
from sparsefx._common.seeds import given_generator
from sparsefx._common.values import check_count
from sparsefx.cycle import LayerState
from sparsefx.cycle.positions.for_all_layers import best_of_each, largest_of_all
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.masking.masks import MaskedWeight, check_unsharded, masked_weights
from sparsefx.passes.graph.plain_graphs import plain
from sparsefx.pruning.budgets import falling_densities, pools_of
from sparsefx.scores import SCORES, Batch, Loss, Score, ScoringContext, compensated_weights


def prune(
    model: nn.Module,
    density: float,
    *,
    score: str | Score = "magnitude",
    scope: str = "global",
    distribution: str | Distribution | None = None,
    batches: Iterable[Batch] = (),
    loss: Loss = F.cross_entropy,
    rounds: int = 1,
    min_active: int = 0,
    compensate: bool = False,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, int]:
    """Shrink the masks, in place, to the weights of highest score.

    Exactly ``round(density * N)`` of the ``N`` maskable weights stay; all of them were active before. Among
    equal scores the lowest flat index is removed first, and the model's first layers before its last. Kept
    weights keep their values, unless ``compensate`` moves them.

    Args:
        model: a masked model; for a dense model, take ``sparsify(model, density=1.0)``.
        density: fraction of all maskable weights that stays, in (0, 1], at most the present density.
        score: a name in :data:`sparsefx.scores.SCORES`, or a callable that takes a
            :class:`~sparsefx.scores.ScoringContext`, such as :func:`functools.partial` of one of them.
        scope: ``"global"``: all weights compete; ``"layer"``: each layer keeps its share.
        distribution: the shares for ``scope="layer"``, as in :func:`sparsify`; uniform by default. A
            layer with fewer active weights than its share keeps all of them, and the others take the rest.
        batches: pairs (inputs, targets) on the model's device, for scores that need data; a list or loader.
        loss: ``(output, target)`` to the mean loss, for scores that need it.
        rounds: how often to score and prune, at densities that fall exponentially from the present
            density (Tanaka et al. 2020: 100 for SynFlow).
        min_active: the number of its best weights that each layer keeps at least, if it has them.
        compensate: move the kept weights so that each layer's output on ``batches`` changes least
            (:func:`sparsefx.scores.compensated_weights`), as layer-wise OBS does.
        seed: seed of the random choices of a score; None draws from ``generator``.
        generator: source of the random choices of a score; torch's default generator by default.

    Returns:
        How many weights each layer keeps, by its name.

    Raises:
        ArgumentError: an argument cannot be used, the density is above the present density, a score
            needs ``batches`` and got none, or a score is not finite. Only completed rounds have changed
            masks.

    Warns:
        UserWarning: a layer has lost all its weights.

    Example:
        >>> import torch, sparsefx
        >>> model = sparsefx.sparsify(torch.nn.Linear(3, 1), density=1.0)
        >>> _ = model.get_parameter("weight").data.copy_(torch.tensor([0.5, -2.0, 1.0]))
        >>> prune(model, 2 / 3)
        {'weight': 2}
        >>> model.get_buffer("mask")
        tensor([[False,  True,  True]])
    """
    model = plain(model)  # scores read gradients of all weights
    layers = _layers(model)
    _check(scope, distribution, rounds, min_active)
    score = resolve("score", score, SCORES)
    context = ScoringContext(model, batches, loss, given_generator(seed, generator))
    for target in falling_densities(layers, density, rounds):
        pools = pools_of(layers, target, scope, distribution)
        scores = _scores(score, context, layers)
        masks = {}
        for members, count in pools:
            masks.update(_best(members, scores, count, min_active))
        _apply(layers, masks, compensated_weights(context, masks) if compensate else {})
    return _active_by_name(layers)


@torch.no_grad()
def prune_below(model: nn.Module, quality: float | Mapping[str, float]) -> dict[str, int]:
    """Remove the weights with ``|w| < quality * std`` of their layer (Han et al. 2015).

    The standard deviation is that of the layer's active weights. The resulting density depends on the
    weights; :func:`prune` reaches a given density.

    Args:
        model: a masked model.
        quality: the factor, at least 0; or a mapping from layer names to factors, which leaves other layers
            unchanged.

    Returns:
        How many weights each layer keeps, by its name.

    Raises:
        ArgumentError: the model has no masked weights, a name is unknown or a factor negative.

    Warns:
        UserWarning: a layer has lost all its weights.
    """
    layers = _layers(model)
    by_name = {layer.name: layer for layer in layers}
    if not isinstance(quality, Mapping):
        quality = dict.fromkeys(by_name, quality)
    for name, factor in quality.items():
        if name not in by_name:
            raise unknown_name("quality", name, by_name)
        if not factor >= 0:
            raise ArgumentError(f"quality={factor!r} for {name!r} is negative; 1.0 is one standard deviation")
    masks = {name: _at_least(by_name[name], factor) for name, factor in quality.items()}
    _apply([by_name[name] for name in masks], masks, {})
    return _active_by_name(layers)


def _layers(model: nn.Module) -> list[MaskedWeight]:
    layers = masked_weights(model)
    if not layers:
        raise ArgumentError("model has no masked weights; make some with sparsify(model, density=1.0)")
    check_unsharded(model, "prune")
    return layers


def _check(scope: str, distribution: str | Distribution | None, rounds: int, min_active: int) -> None:
    if scope not in ("global", "layer"):
        raise unknown_name("scope", scope, ("global", "layer"))
    if scope == "global" and distribution is not None:
        raise ArgumentError(f"distribution={distribution!r} is for scope='layer'; scope is 'global'")
    check_count("rounds", rounds)
    check_count("min_active", min_active, 0)


def _scores(score: Score, context: ScoringContext, layers: Sequence[MaskedWeight]) -> dict[str, Tensor]:
    """The scores, held to their contract."""
    name = getattr(score, "__name__", repr(score))
    try:
        scores = score(context)
    except torch.linalg.LinAlgError as error:
        raise ArgumentError(
            f"score {name!r} met a matrix that is singular or not finite, as where training has diverged: "
            f"{error}"
        ) from error
    for layer in layers:
        values = scores.get(layer.name)
        if values is None or values.shape != layer.mask.shape:
            got = "nothing" if values is None else f"shape {tuple(values.shape)}"
            raise ArgumentError(
                f"score {name!r} returned {got} for layer {layer.name!r} of shape {tuple(layer.mask.shape)}"
            )
        if not bool(values.isfinite().all()):
            raise ArgumentError(
                f"score {name!r} is not finite for layer {layer.name!r}; look for NaN or infinity in the "
                "weights, the data or the loss"
            )
    return scores


def _best(
    layers: Sequence[MaskedWeight], scores: Mapping[str, Tensor], count: int, min_active: int
) -> dict[str, Tensor]:
    """Masks that keep ``count`` weights of these layers in all, in each layer the ``min_active`` best."""
    states = [LayerState(layer.name, layer.weight.detach(), layer.mask) for layer in layers]
    masks, values = [layer.mask for layer in layers], [scores[layer.name] for layer in layers]
    safe = best_of_each(states, values, masks, min_active)
    removable = [mask & ~best for mask, best in zip(masks, safe, strict=True)]
    excess = sum(int(mask.sum()) for mask in masks) - count
    if excess > sum(int(some.sum()) for some in removable):
        raise ArgumentError(
            f"min_active={min_active} asks {sum(int(best.sum()) for best in safe)} weights of "
            f"{', '.join(layer.name for layer in layers)}, where density leaves {count}; lower it"
        )
    removed = largest_of_all(states, [-value for value in values], removable, excess)
    return {layer.name: mask & ~gone for layer, mask, gone in zip(layers, masks, removed, strict=True)}


def _at_least(layer: MaskedWeight, quality: float) -> Tensor:
    active = layer.weight[layer.mask]
    if not active.numel():
        return layer.mask
    return layer.mask & (layer.weight.abs() >= quality * active.std(correction=0))


@torch.no_grad()
def _apply(
    layers: Sequence[MaskedWeight], masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    emptied = [layer.name for layer in layers if layer.mask.any() and not masks[layer.name].any()]
    for layer in layers:
        if layer.name in weights and layer.weight.requires_grad:
            layer.weight.copy_(weights[layer.name])
        layer.set_mask(masks[layer.name])
    if emptied:
        warnings.warn(
            f"pruning left no weight in {', '.join(emptied)}; min_active keeps some, scope='layer' too",
            stacklevel=3,
        )


def _active_by_name(layers: Sequence[MaskedWeight]) -> dict[str, int]:
    return {layer.name: int(layer.mask.sum()) for layer in layers}
