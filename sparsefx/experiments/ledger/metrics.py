"""Metrics: numbers that a table shows, each read off one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsefx.errors import unknown_name
from sparsefx.experiments.ledger.record import Run


@dataclass(frozen=True)
class Metric:
    """A number of a run.

    Attributes:
        title: what to call it, with its unit.
        path: where it is: names of fields and of entries, joined by dots.
        complement: show 100 minus it, for an accuracy instead of an error.
    """

    title: str
    path: str
    complement: bool = False

    def __call__(self, run: Run) -> float | None:
        """The number; None if this run was not measured so."""
        entry: Any = run
        for name in self.path.split("."):
            entry = entry.get(name) if isinstance(entry, dict) else getattr(entry, name, None)
        if not isinstance(entry, (int, float)):
            return None
        return 100 - entry if self.complement else float(entry)


_SPEEDUP = "analyses.speedup"

METRICS: dict[str, Metric] = {
    "test error": Metric("test error, %", "final.test_error"),
    "validation error": Metric("validation error, %", "final.validation_error"),
    "accuracy": Metric("test accuracy, %", "final.test_error", complement=True),
    "top-5 accuracy": Metric("top-5 test accuracy, %", "analyses.top5_error", complement=True),
    "dense convolution": Metric("speed-up", f"{_SPEEDUP}.activations.dense_by_time"),
    "sparse convolution": Metric("speed-up", f"{_SPEEDUP}.activations.sparse_by_time"),
    "dense convolution, FLOPs": Metric("speed-up", f"{_SPEEDUP}.weights.dense_by_flops"),
    "sparse convolution, FLOPs": Metric("speed-up", f"{_SPEEDUP}.weights.sparse_by_flops"),
    "specialisation": Metric("mean class specialisation", "analyses.specialisation.mean"),
}
"""What a table can show, by name."""


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ArgumentError: no metric is called so.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]
