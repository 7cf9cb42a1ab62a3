"""Made runs for the tests of the ledger and its tables."""

from __future__ import annotations

from typing import Any

from sparsefx.experiments.ledger.record import EpochRow, Final, LayerRow, Run


def made_run(test_error: float = 1.5, *, reached: float | None = None, **changes: Any) -> Run:
    """A run of sparse momentum on LeNet 300-100 at 5%, but for what is changed."""
    fields: dict[str, Any] = {
        "network": "lenet-300-100",
        "data": "mnist",
        "method": "sparse-momentum",
        "density": 0.05,
        "seed": 0,
        "options": {},
        "recipe": {"epochs": 100, "learning_rate": 0.1},
        "shortened": False,
        "versions": {"sparsefx": "0.1.0", "torch": "2.6.0", "python": "3.10"},
        "hardware": "2 cores",
        "seconds": 120.0,
        "finished": "2026-01-02T03:04:05",
        "epochs": (EpochRow(1, 0.5, 3.0, None, 0.1, 0.5, (0.05, 0.05, 0.05)),),
        "layers": (LayerRow("1", (300, 784), 11760, 0.05),),
        **changes,
    }
    density = fields["density"] if reached is None else reached
    return Run(**fields, final=Final(test_error, 2.0, 0.05, 0.01, density, density + 0.01))
