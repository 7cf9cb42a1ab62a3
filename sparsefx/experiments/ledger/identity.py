"""What makes two runs the same experiment: the configuration, as canonical text and as a short name."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from sparsefx.errors import LedgerError

CONFIGURATION = ("network", "data", "method", "options", "density", "seed", "recipe", "shortened")
"""The fields of a run that say what was asked for."""


def run_name(configuration: Mapping[str, Any]) -> str:
    """The name of a configuration: readable fields, then eight digits of a hash over all of them.

    Args:
        configuration: its entries are :data:`CONFIGURATION`.

    Example:
        >>> run_name(dict(network="lenet-300-100", data="mnist", method="set", options={}, density=0.05,
        ...               seed=3, recipe={"epochs": 100}, shortened=False))
        'lenet-300-100_mnist_set_0.05_3_8957a2e6'
    """
    fields = {name: configuration[name] for name in CONFIGURATION}
    fields["density"] = float(fields["density"])  # 1 and 1.0 are one density
    digest = hashlib.sha256(canonical(fields).encode()).hexdigest()[:8]
    readable = [fields[name] for name in ("network", "data", "method")]
    return _file_name(*readable, f"{fields['density']:g}", fields["seed"], digest)


def file_name(configuration: Mapping[str, Any]) -> str:
    """The file of a ledger that holds the runs of a configuration's network and data set.

    Example:
        >>> file_name({"network": "lenet-300-100", "data": "mnist"})
        'lenet-300-100_mnist.jsonl'
    """
    return _file_name(configuration["network"], configuration["data"]) + ".jsonl"


def canonical(plain: Any) -> str:
    """Plain data as JSON text that is the same for equal data; numbers that are not finite become null.

    Raises:
        LedgerError: it holds something that JSON has no word for.
    """
    try:
        return json.dumps(_finite(plain), sort_keys=True, allow_nan=False)
    except TypeError as error:
        raise LedgerError(f"{plain!r:.80} is not plain data: {error}") from error


def _file_name(*fields: object) -> str:
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", str(field)) for field in fields)


def _finite(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _finite(entry) for key, entry in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [_finite(entry) for entry in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
