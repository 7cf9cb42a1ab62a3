"""A region of a model that trains by sparse kernels: it stands for layers, which keep their parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from sparsefx.errors import ArgumentError
from sparsefx.kernels.runtime.threads import available_threads
from sparsefx.kernels.training.checks import Image, check_inputs, check_parameters, first_hooked, images_of
from sparsefx.kernels.training.forms import TensorForm, contiguous_form
from sparsefx.kernels.training.layers import ConvolutionLayer, NormalisationLayer
from sparsefx.kernels.training.memory_pool import POOL, return_free_memory
from sparsefx.kernels.training.program import SparseConvolution, TrainingProgram

_MOST_STEPS = 8  # compiled, of the last forms


@dataclass(frozen=True)
class _Run:
    """What the backward pass needs of a forward pass."""

    region: TrainingRegion
    step: Any
    versions: Any
    inputs: tuple[TensorForm, ...]

    def check_versions(self) -> None:
        """Pack the weights again if something has made them dense meanwhile, such as ``state_dict()``.

        Raises:
            RuntimeError: they are no longer the weights of the forward pass.
        """
        if self.versions != self.region.versions():
            raise RuntimeError(
                "masks of an accelerated model, or which of its weights are packed, have changed between the "
                "forward and the backward pass; call backward() before a cycle"
            )


class TrainingRegion(nn.Module):
    """Computes several layers, and what stands between them, by sparse kernels, forward and backward.

    It has no parameters: they belong to the layers, which are found where they were in the model.

    Args:
        program: what to compute.
        convolutions: the layers of its convolutions, in order.
        normalisations: the layers of its normalisations, in order.
        flattened: which of the outputs are images that are returned as rows.
        dropouts: those that make the program's noises, in order.

    Attributes:
        program: what it computes.
        is_new: whether no weights were packed since the model was finished.
    """

    def __init__(
        self,
        program: TrainingProgram,
        convolutions: Sequence[nn.Module],
        normalisations: Sequence[nn.Module],
        flattened: Sequence[bool],
        dropouts: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        items = {item.layer: item for item in program.instructions if isinstance(item, SparseConvolution)}
        self.program = program
        # In tuples, which register nothing: a layer must not have a second name.
        self._convolutions = tuple(
            ConvolutionLayer(module, items[index]) for index, module in enumerate(convolutions)
        )
        self._normalisations = tuple(NormalisationLayer(module) for module in normalisations)  # type: ignore[arg-type]
        self._flattened, self._dropouts = tuple(flattened), tuple(dropouts)
        self.parameter_names = (
            *_names("", self._convolutions),
            *_names("norm ", self._normalisations),
        )
        self._steps: dict[Any, Any] = {}
        self.is_new, self._has_told = True, False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": {}}

    @_disable_dynamo  # a graph break: kernels read addresses, which tracers do not have
    def forward(self, *inputs: Tensor) -> Any:
        """The outputs: a tensor, or a tuple of several.

        Args:
            inputs: images ``[N, C, *size]`` in float32, or rows ``[..., C]``, as the layers take them.

        Raises:
            ArgumentError: an input is of another type, device, channels or size than the layers take, or too
                large for tables of 32 bits; or parameters are not in float32 on the CPU.
            RuntimeError: forward-mode differentiation is on.
            ValueError: a batch has one value a channel, which has no variance.
        """
        rows = [self._as_images(tensor) for tensor in inputs]
        if forward_ad._current_level >= 0:
            raise RuntimeError(
                "sparse kernels have no forward-mode derivatives (jvp); take them with the model that "
                "was not accelerated"
            )
        check_inputs(self.program, rows)
        self._tell_of_hooks()
        rows += self._noises(rows)
        versions = self.versions()
        parameters = self.trained()
        check_parameters([*parameters, *(one for layer in self._normalisations for one in layer.statistics)])
        outputs = _Function.apply(self, versions, torch.is_grad_enabled(), len(rows), *rows, *parameters)
        if not self.program.dims:
            shape = inputs[0].shape[:-1]
            outputs = tuple(output.reshape(*shape, output.shape[-1]) for output in outputs)
        outputs = tuple(
            output.flatten(1) if flat else output
            for output, flat in zip(outputs, self._flattened, strict=True)
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def _tell_of_hooks(self) -> None:
        """Warn once of hooks that came after the region, and are not called."""
        hooked = None if self._has_told else first_hooked(self.layers)
        if hooked is not None:
            self._has_told = True
            warnings.warn(
                f"a {type(hooked).__name__} has a hook since it was accelerated, which sparse kernels do not "
                "call; register it before sparsefx.accelerate, which leaves the layer to torch then",
                stacklevel=2,
            )

    @property
    def layers(self) -> list[nn.Module]:
        """The modules that it stands for, but for those without parameters and settings."""
        convolutions = (layer.module for layer in self._convolutions)
        return [*convolutions, *(layer.module for layer in self._normalisations), *self._dropouts]

    def _noises(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """What each dropout multiplies by, ``[N, C, *size]``, by torch's generator."""
        if not self._dropouts:
            return []
        images = images_of(self.program, tuple(map(_form_of, rows)), self.features)
        of_noises = images[len(rows) : self.program.inputs]
        shapes = ((len(rows[0]), channels, *size[3 - self.program.dims :]) for channels, size in of_noises)
        with torch.no_grad():
            return [
                dropout(torch.ones(shape, dtype=torch.float32, device="cpu"))
                for dropout, shape in zip(self._dropouts, shapes, strict=True)
            ]

    def versions(self) -> tuple[Any, ...]:
        """Pack the weights that may be; for each layer, what the places of its nonzeros are known by."""
        self.pack()
        return tuple(layer.version() for layer in self._convolutions)

    def pack(self) -> None:
        """Pack the weights that are masked."""
        were_dense = [layer.pack() for layer in self._convolutions]
        if any(were_dense):
            # When training begins, the model that was accelerated is often not needed any more.
            return_free_memory(circles=self.is_new)
            self.is_new = False

    def unpack(self) -> None:
        """Let all weights be dense until the next forward pass."""
        for layer in self._convolutions:
            layer.unpack()

    def trained(self) -> list[Tensor]:
        """The parameters of the layers: weights, packed or not, and biases ``[out]``."""
        parts: tuple[ConvolutionLayer | NormalisationLayer, ...] = (
            *self._convolutions,
            *self._normalisations,
        )
        return [tensor for part in parts for tensor in part.tensors]

    def named(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The parameters of the layers, contiguous, as the compiled step calls them.

        Args:
            parameters: of :meth:`trained`, packed or ``[out, in / groups, *kernel]``, and ``[out]``.
        """
        return {
            name: tensor.contiguous() for name, tensor in zip(self.parameter_names, parameters, strict=True)
        }

    def _as_images(self, tensor: Tensor) -> Tensor:
        if self.program.dims:
            return tensor
        if tensor.dim() < 1 or (self._normalisations and tensor.dim() != 2):
            wanted = "2" if self._normalisations else "1 or more"
            raise ArgumentError(f"an input of {tuple(tensor.shape)} has not {wanted} dimensions")
        return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])

    def step(
        self, inputs: Sequence[Tensor], versions: Any, needs: Sequence[bool], differentiated: bool
    ) -> tuple[Any, tuple[TensorForm, ...]]:
        """The compiled step for tensors ``[N, C, *size]`` of these forms, and those forms."""
        forms = tuple(map(_form_of, inputs))
        norms = tuple(layer.state for layer in self._normalisations)
        threads = available_threads()
        key = (forms, versions, norms, tuple(needs), differentiated, threads)
        if key not in self._steps:
            self._steps[key] = self._make_step(forms, norms, needs, differentiated, threads)
            for old in list(self._steps)[:-_MOST_STEPS]:
                del self._steps[old]
            return_free_memory()
        return self._steps[key], forms

    def _make_step(
        self,
        forms: tuple[TensorForm, ...],
        norms: Any,
        needs: Sequence[bool],
        differentiated: bool,
        threads: int,
    ) -> Any:
        from sparsefx.kernels.training.plan import Draft
        from sparsefx.kernels.training.step import make_step  # both need llvmlite

        count = len(forms)
        needed = tuple(index for index in range(count) if needs[index] and differentiated)
        images = images_of(self.program, forms, self.features)
        trained = iter(needs[count:])
        layers = []
        for layer in self._convolutions:
            flags = [next(trained) and differentiated for _ in layer.tensors]
            layers.append(layer.state(images[layer.item.source].size, flags[0], len(flags) > 1 and flags[1]))
        draft = Draft(self.program, forms, images, layers, norms, needed, threads)
        outputs = tuple(contiguous_form(shape) for shape in self.output_shapes(draft.images, images))
        wanted = differentiated and any(needs)
        inputs = tuple(contiguous_form(forms[index].shape) for index in needed)
        return make_step(draft, outputs, outputs if wanted else None, inputs)

    @property
    def features(self) -> list[int]:
        """Channels of each normalisation."""
        return [layer.module.num_features for layer in self._normalisations]

    def output_shapes(self, count: int, images: Sequence[Image]) -> list[tuple[int, ...]]:
        """Of the outputs as tensors: ``(count, channels, *size)``, or ``(count, channels)``.

        Args:
            count: of images.
            images: one of every value.
        """
        shapes = []
        for value in self.program.outputs:
            channels, whole = images[value]
            is_flat = value in self.program.flat or not self.program.dims
            size = () if is_flat else whole[3 - self.program.dims :]
            shapes.append((count, channels, *size))
        return shapes

    def extra_repr(self) -> str:
        """How many layers it stands for."""
        parts = f"{len(self._convolutions)} layers, {len(self._normalisations)} normalisations"
        return parts + (f", {len(self._dropouts)} dropouts" if self._dropouts else "")


class _Function(torch.autograd.Function):
    """A region's step in autograd."""

    @staticmethod
    def forward(
        ctx: Any, region: TrainingRegion, versions: Any, differentiated: bool, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.count = count
        inputs = [_plain(tensor) for tensor in tensors[:count]]
        if not len(inputs[0]):
            return _empty_step(ctx, region, tuple(map(_form_of, inputs)), tensors)
        parameters = tensors[count:]
        step, forms = region.step(inputs, versions, ctx.needs_input_grad[4:], differentiated)
        _check_variance(inputs[0], step)
        named = region.named(parameters)
        for index, layer in enumerate(region._normalisations):
            named[f"norm momentum {index}"] = layer.count()
            statistics = zip(("running_mean", "running_var"), layer.statistics, strict=False)
            named |= {f"norm {name} {index}": statistic for name, statistic in statistics}
        named |= {f"input {index}": tensor for index, tensor in enumerate(inputs)}
        outputs = tuple(torch.empty(form.shape, dtype=torch.float32, device="cpu") for form in step.outputs)
        named |= {f"output {index}": tensor for index, tensor in enumerate(outputs)}
        kept = named["kept"] = POOL.lend(step.kept)
        step.forward.run(named)
        if step.backward is not None:
            ctx.run = _Run(region, step, versions, forms)
            ctx.save_for_backward(kept, *parameters)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sparse kernels cannot be differentiated twice (create_graph=True); do so with the model "
                "that was not accelerated"
            )
        run: _Run | None = ctx.run
        needs = ctx.needs_input_grad[4:]
        if run is None:
            zeros = [torch.zeros(shape, dtype=torch.float32, device="cpu") for shape in ctx.shapes]
            return (
                None,
                None,
                None,
                None,
                *(z if need else None for z, need in zip(zeros, needs, strict=True)),
            )
        run.check_versions()
        kept, *saved = ctx.saved_tensors
        named = run.region.named(saved)
        named |= {f"gradient {index}": gradient.contiguous() for index, gradient in enumerate(gradients)}
        named["kept"] = kept
        results: list[Tensor | None] = [None] * len(needs)
        for index in range(ctx.count):
            if needs[index]:
                gradient = torch.zeros(run.inputs[index].shape, dtype=torch.float32, device="cpu")
                results[index] = named[f"input gradient {index}"] = gradient
        for place, name in enumerate(run.region.parameter_names, ctx.count):
            # Kernels add to a weight's gradient, and write those of norms in pairs, needed or not.
            gradient = named[f"{name} gradient"] = torch.zeros_like(named[name])
            results[place] = gradient if needs[place] else None
        assert run.step.backward is not None
        run.step.backward.run(named)
        return (None, None, None, None, *results)


def _names(kind: str, layers: Sequence[ConvolutionLayer | NormalisationLayer]) -> Iterator[str]:
    """What the compiled step calls the parameters of layers."""
    for index, layer in enumerate(layers):
        yield from (f"{kind}weight {index}", f"{kind}bias {index}")[: len(layer.tensors)]


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that kernels can read: where its channels are neighbours, or its columns are."""
    tensor = tensor.detach().float()
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor if last and tensor.stride(1) == 1 else tensor.contiguous()


def _form_of(tensor: Tensor) -> TensorForm:
    return TensorForm(tuple(tensor.shape), tuple(tensor.stride()))


def _check_variance(x: Tensor, step: Any) -> None:
    """As torch, refuse a batch of one value a channel."""
    if step.least == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}"
        )


def _empty_step(
    ctx: Any, region: TrainingRegion, forms: tuple[TensorForm, ...], tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """What torch gives for no images: outputs without any, and gradients of zeros."""
    images = images_of(region.program, forms, region.features)
    ctx.run, ctx.shapes = None, [tensor.shape for tensor in tensors]
    for layer in region._normalisations:
        layer.count()
    return tuple(
        torch.empty(shape, dtype=torch.float32, device="cpu") for shape in region.output_shapes(0, images)
    )
