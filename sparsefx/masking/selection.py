"""Which layers are masked: finding every maskable weight of a model, and the ``dense=`` argument."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from sparsefx._common.plain_tensors import is_wrapped
from sparsefx.errors import ArgumentError, unknown_name
from sparsefx.masking.layers import MASKABLE

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""One entry of ``dense=``: a layer's or container's name, a glob, a module type, or a predicate."""

_FUNCTIONAL = frozenset(
    {
        F.linear,
        *(getattr(F, f"conv{n}d") for n in (1, 2, 3)),
        *(getattr(F, f"conv_transpose{n}d") for n in (1, 2, 3)),
    }
)


_EMBEDDINGS = frozenset({F.embedding, F.embedding_bag})
_PARAMETER_CONTAINERS = (nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Candidate:
    """A weight that can be masked.

    Attributes:
        name: the layer's name (``<module>.<parameter>`` where the parameter is not ``weight``).
        holders: each (path, module, parameter name) that holds it; several where it is tied, or where
            its module is known by several names.
    """

    name: str
    holders: tuple[tuple[str, nn.Module, str], ...]

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        _, module, parameter = self.holders[0]
        return module.get_parameter(parameter)

    def paths(self) -> Iterator[str]:
        """The names it answers to: of its layers, and of the modules that contain them."""
        for path, _, parameter in self.holders:
            yield _layer_name(path, parameter)
            while path:
                yield path
                path = path.rpartition(".")[0]


def find_candidates(model: nn.Module, graphs: Iterable[fx.Graph]) -> list[Candidate]:
    """Every weight of a model that can be masked, in module order, tied weights once.

    These are the weights of :data:`~sparsefx.masking.layers.MASKABLE` layers and the parameters that a graph
    hands to ``F.linear`` or ``F.convNd``. A weight also held by any other kind of module (an
    embedding, say), or handed to ``F.embedding``, is left out.

    Raises:
        ArgumentError: a layer is lazy and has no shape yet.
    """
    graphs = list(graphs)
    functional = set(_parameters_used_by(_FUNCTIONAL, model, graphs))
    embedded = set(_parameters_used_by(_EMBEDDINGS, model, graphs))
    held: dict[int, list[tuple[str, nn.Module, str]]] = {}
    excluded = embedded
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter, tensor in module._parameters.items():
            if tensor is None:
                continue
            if isinstance(module, MASKABLE) and is_lazy(tensor):
                raise ArgumentError(f"layer {path!r} is lazy and has no shape yet; run model(x) once first")
            if _is_maskable(module, parameter, functional) and _is_maskable_tensor(tensor):
                held.setdefault(id(tensor), []).append((path, module, parameter))
            else:
                excluded.add(id(tensor))
    return [_candidate(holders) for key, holders in held.items() if key not in excluded]


def find_computed(model: nn.Module) -> list[Candidate]:
    """The layers with a weight that cannot be masked: it is computed at each call, or quantised.

    These are layers that ``weight_norm``, a parametrization or ``torch.nn.utils.prune`` took apart, and those
    that torchao or bitsandbytes quantised.
    """
    return [
        Candidate(path, ((path, module, "weight"),))
        for path, module in model.named_modules()
        if isinstance(module, MASKABLE)
        and not ("weight" in module._parameters and _is_maskable_tensor(module._parameters["weight"]))
    ]


def select_dense(
    candidates: list[Candidate], dense: Selector | Iterable[Selector], model: nn.Module
) -> set[str]:
    """The names of the candidates that ``dense=`` keeps dense.

    A tied weight stays dense if any of its layers does.

    Raises:
        ArgumentError: a name or glob matches no layer, or an entry is of no known kind.
    """
    chosen: set[str] = set()
    for selector in _as_list(dense):
        matches = _matcher(selector, model)
        found = {candidate.name for candidate in candidates if matches(candidate)}
        if isinstance(selector, str) and not found:
            known = {path for candidate in candidates for path in candidate.paths()}
            raise unknown_name("dense", selector, known)
        chosen |= found
    return chosen


def _parameters_used_by(
    functions: Set[object], model: nn.Module, graphs: Iterable[fx.Graph]
) -> Iterator[int]:
    """The identities of the parameters that are weights of some functions; a filter in a buffer is not."""
    for graph in graphs:
        for node in graph.nodes:
            if node.op == "call_function" and node.target in functions:
                weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
                if isinstance(weight, fx.Node) and weight.op == "get_attr":
                    held = operator.attrgetter(str(weight.target))(model)
                    if isinstance(held, nn.Parameter):
                        yield id(held)


def _is_maskable_tensor(tensor: Tensor | None) -> bool:
    """Whether a tensor holds the numbers that it stands for; one that a library quantised does not."""
    return tensor is not None and tensor.is_floating_point() | tensor.is_complex() and not is_wrapped(tensor)


def _is_maskable(module: nn.Module, parameter: str, functional: set[int]) -> bool:
    if isinstance(module, MASKABLE):
        return parameter == "weight"
    if type(module).__module__.startswith("torch.nn.") and not isinstance(module, _PARAMETER_CONTAINERS):
        return False
    return id(module._parameters[parameter]) in functional


def _candidate(holders: list[tuple[str, nn.Module, str]]) -> Candidate:
    path, _, parameter = holders[0]
    return Candidate(_layer_name(path, parameter), tuple(holders))


def _layer_name(path: str, parameter: str) -> str:
    return path if parameter == "weight" and path else f"{path}.{parameter}".lstrip(".")


def _as_list(dense: Selector | Iterable[Selector]) -> list[Selector]:
    if isinstance(dense, (str, type)) or callable(dense) or not isinstance(dense, Iterable):
        return [dense]
    return list(dense)


def _matcher(selector: Selector, model: nn.Module) -> Callable[[Candidate], bool]:
    if isinstance(selector, str):
        return lambda candidate: any(
            path == selector or fnmatch.fnmatchcase(path, selector) for path in candidate.paths()
        )
    if isinstance(selector, type):
        return lambda candidate: any(isinstance(m, selector) for m in _enclosing(candidate, model))
    if callable(selector) and not isinstance(selector, nn.Module):
        return lambda candidate: any(
            selector(_layer_name(path, parameter), module) for path, module, parameter in candidate.holders
        )
    raise ArgumentError(
        f"dense={selector!r} is not a layer name, glob, module type or predicate(name, module)"
    )


def _enclosing(candidate: Candidate, model: nn.Module) -> Iterator[nn.Module]:
    for path, module, _ in candidate.holders:
        yield module
        while path:
            path = path.rpartition(".")[0]
            if path:
                yield model.get_submodule(path)
