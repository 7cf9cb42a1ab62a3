"""Try to load what is about to be saved: a file that cannot be loaded is found while the model still exists.

Loading needs the architecture that was exported, so ``export`` leaves a copy of it here, without its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sparsefx.archive.architecture import Architecture
from sparsefx.archive.plan import ModulePlan
from sparsefx.archive.rebuild import rebuild

# not an attribute of the result, which would then be copied and pickled along with the user's code
_architectures: WeakKeyDictionary[nn.Module, Architecture] = WeakKeyDictionary()


def remember(compact: nn.Module, model: nn.Module) -> None:
    """Keep the architecture of an export for as long as its result lives."""
    try:
        _architectures[compact] = Architecture(Architecture(model).copy_with({}))
    except Exception:  # what cannot be copied without its weights cannot be tried
        return


def try_to_load(compact: nn.Module, modules: Sequence[Any], tensors: Mapping[str, Tensor]) -> None:
    """Rebuild a model from what a file would hold, if its architecture is known.

    Args:
        compact: the model that is about to be saved.
        modules: the plan of each module, as plain data.
        tensors: its tensors, of any shape.

    Raises:
        DataError: a load would refuse it.
    """
    architecture = _architectures.get(compact)
    if architecture is not None:
        plans = [ModulePlan.from_data(plan) for plan in json.loads(json.dumps(modules))]
        rebuild(plans, tensors, architecture)
