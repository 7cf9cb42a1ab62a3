"""L0 regularisation: random gates that are exactly 0 or 1 with a learned probability."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsefx.errors import ArgumentError
from sparsefx.regularisers.base import Decision, Regulariser, check_positive
from sparsefx.regularisers.layer_map import apply_weight, count_groups, layers_of, spread_to_weight

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1
_LARGEST = math.log(100)  # log alpha is clamped to [-log 100, log 100]
_EDGE = 1e-6  # uniform draws stay this far from 0 and 1


def hard_concrete(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """The gate in [0, 1] that a uniform draw in (0, 1) gives (Louizos et al. 2018, equations 10 and 11)."""
    return _stretched(torch.sigmoid((uniform.logit() + log_alpha) / _BETA))


def mean_gate(log_alpha: Tensor) -> Tensor:
    """The gate used at test time, elementwise; exactly 0 for ``log_alpha`` up to -log 11 (equation 13)."""
    return _stretched(torch.sigmoid(log_alpha))


def open_probability(log_alpha: Tensor) -> Tensor:
    """The probability that a gate is not 0, elementwise (equation 12).

    Example:
        >>> round(float(open_probability(torch.tensor(0.0))), 6)
        0.831822
    """
    return torch.sigmoid(log_alpha - _BETA * math.log(-_GAMMA / _ZETA))


def _stretched(share: Tensor) -> Tensor:
    return (share * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


class HardConcrete(Regulariser):
    """Multiply groups of weights by gates that close for good (Louizos, Welling & Kingma 2018).

    A gate stands before each input of a Linear layer and after each output map of a convolution (its
    bias included), so that closed ones leave empty columns and rows for ``export`` to remove; or, as an
    option, at each single weight. The penalty is ``strength / samples`` times the expected number of
    weights behind open gates, plus ``weight_decay / 2`` times the expected square of the weights. The
    decision multiplies weights by the test-time gates. With a density, weights are ranked by log alpha,
    within a group by magnitude; those behind a closed gate are 0 even if the density keeps them.

    The paper trains by Adam at 1e-3, in 200 epochs of batches of 100. Decay by the optimizer comes on
    top: leave it off for the gated weights.

    Args:
        model: masks all True; trained or not.
        samples: how many examples the training set has.
        strength: lambda, what a weight costs; one number, or one a masked layer.
        weight_decay: of the gated weights.
        drop_rate: probability, in (0, 1), that gates are about closed at the start; one number, or one a
            layer (the authors take 0.2 for the inputs of a multilayer perceptron).
        gates: ``"neuron"`` or ``"weight"``.
        per_example: draw the gates anew for every example, not once a batch; for ``"neuron"`` only.

    Raises:
        ArgumentError: an argument is out of range, or the model cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int,
        strength: float | Sequence[float] = 0.1,
        weight_decay: float = 5e-4,
        drop_rate: float | Sequence[float] = 0.5,
        gates: str = "neuron",
        per_example: bool = False,
    ) -> None:
        super().__init__(model)
        check_positive("samples", samples)
        check_positive("weight_decay", weight_decay, zero=True)
        _check_gates(gates, per_example)
        self._samples, self._weight_decay = samples, weight_decay
        self._of_weights, self._per_example = gates == "weight", per_example
        self._strengths = self._one_a_layer("strength", strength)
        for value in self._strengths:
            check_positive("strength", value, zero=True)
        rates = self._one_a_layer("drop_rate", drop_rate)
        if not all(0 < rate < 1 for rate in rates):
            raise ArgumentError(f"drop_rate={drop_rate!r} is outside (0, 1)")
        self._layers = [layers_of(masked) for masked in self._masked]
        self.log_alphas = nn.ParameterList(self._initial(i, rate) for i, rate in enumerate(rates))
        self.attach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The gates' log alpha at 1e-3, for Adam."""
        return [{"params": list(self.log_alphas), "lr": 1e-3, "weight_decay": 0.0}]

    def gates(self) -> list[Tensor]:
        """The test-time gates of every layer, as one a group: (groups,), or the weight's shape."""
        return [mean_gate(log_alpha) for log_alpha in self.log_alphas]

    def _one_a_layer(self, argument: str, value: float | Sequence[float]) -> list[float]:
        values = [value] * len(self._masked) if isinstance(value, (int, float)) else list(value)
        if len(values) != len(self._masked):
            raise ArgumentError(
                f"{argument} has {len(values)} values, model {len(self._masked)} masked layers"
            )
        return values

    def _initial(self, index: int, drop_rate: float) -> Tensor:
        weight, layer = self._masked[index].weight.detach(), self._layers[index][0]
        like = weight if self._of_weights else weight.new_empty(count_groups(layer))
        return torch.empty_like(like).normal_(math.log((1 - drop_rate) / drop_rate), 0.01)

    def _spread(self, index: int, values: Tensor) -> Tensor:
        """One value a gate, expanded to the weight's shape."""
        return values if self._of_weights else spread_to_weight(self._layers[index][0], values)

    def _penalty(self) -> Tensor:
        parts = zip(self._masked, self.log_alphas, self._strengths, strict=True)
        terms = []
        for index, (masked, log_alpha, strength) in enumerate(parts):
            price = strength / self._samples + 0.5 * self._weight_decay * masked.weight.square()
            terms.append((self._spread(index, open_probability(log_alpha)) * price).sum())
        return torch.stack(terms).sum()

    @torch.no_grad()
    def _advance(self, before: float) -> None:
        for log_alpha in self.log_alphas:
            log_alpha.clamp_(-_LARGEST, _LARGEST)

    def _hooks(self) -> Iterable[RemovableHandle]:
        for index, layers in enumerate(self._layers):
            for layer in layers:
                if self._of_weights:
                    yield layer.register_forward_hook(partial(self._gate_weights, index))
                elif isinstance(layer, nn.Linear):
                    yield layer.register_forward_pre_hook(partial(self._gate_inputs, index))
                else:
                    yield layer.register_forward_hook(partial(self._gate_maps, index))

    def _draw(self, index: int, layer: nn.Module, *batch: int) -> Tensor:
        """Gates of shape (*batch, groups); those of test time if the layer is in evaluation."""
        log_alpha = self.log_alphas[index]
        if not layer.training:
            return mean_gate(log_alpha)
        uniform = torch.rand(*batch, *log_alpha.shape, dtype=log_alpha.dtype, device=log_alpha.device)
        return hard_concrete(log_alpha, uniform * (1 - 2 * _EDGE) + _EDGE)

    def _gate_inputs(self, index: int, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        batch = [len(x), *[1] * (x.dim() - 2)] if self._per_example and x.dim() > 1 else []
        return (x * self._draw(index, layer, *batch), *args[1:])

    def _gate_maps(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        spatial = self._masked[index].weight.dim() - 2
        batch = [len(output)] if self._per_example and output.dim() == spatial + 2 else []
        gates = self._draw(index, layer, *batch)
        return output * gates.view(*gates.shape, *[1] * spatial)

    def _gate_weights(self, index: int, layer: nn.Module, args: tuple[Any, ...], _: Tensor) -> Tensor:
        weight = self._masked[index].weight * self._draw(index, layer)
        return apply_weight(layer, args, weight, layer.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def _decision(self) -> Decision:
        gates = self._flat(self._spread(i, gate) for i, gate in enumerate(self.gates()))
        log_alphas = self._flat(self._spread(i, log_alpha) for i, log_alpha in enumerate(self.log_alphas))
        weights = self._weights()
        ranks = log_alphas.unique(return_inverse=True)[1].double()
        sizes = weights.abs().double()
        scores = ranks + sizes / (1 + sizes.max())  # below 1: never outweighs a rank
        return Decision(weights * gates, scores, gates > 0)

    def _fold(self) -> None:
        """The gates of output maps apply to biases too."""
        if self._of_weights:
            return
        folded: set[int] = set()
        for gate, layers in zip(self.gates(), self._layers, strict=True):
            for layer in layers:
                bias = cast("Tensor | None", layer.bias)
                if bias is not None and not isinstance(layer, nn.Linear) and id(bias) not in folded:
                    bias.mul_(gate)
                    folded.add(id(bias))


def _check_gates(gates: str, per_example: bool) -> None:
    if gates not in ("neuron", "weight"):
        raise ArgumentError(f"gates={gates!r} is neither 'neuron' nor 'weight'")
    if per_example and gates == "weight":
        raise ArgumentError("per_example=True needs gates='neuron'; gates of weights are drawn once a batch")
