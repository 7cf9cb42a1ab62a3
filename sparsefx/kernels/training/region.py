"""A region of a model that trains by sparse kernels: it stands for layers, which keep their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsefx.errors import ArgumentError
from sparsefx.kernels.runtime.threads import available_threads
from sparsefx.kernels.training.forms import TensorForm, contiguous_form
from sparsefx.kernels.training.layers import ConvolutionLayer, NormalisationLayer
from sparsefx.kernels.training.memory_pool import Borrowed, return_free_memory
from sparsefx.kernels.training.program import Combination, SparseConvolution, TrainingProgram

_MOST_STEPS = 8  # compiled, of the last forms


@dataclass(frozen=True)
class _Run:
    """What the backward pass needs of a forward pass."""

    region: TrainingRegion
    step: Any
    kept: Borrowed
    inputs: tuple[TensorForm, ...]


class TrainingRegion(nn.Module):
    """Computes several layers, and what stands between them, by sparse kernels, forward and backward.

    It has no parameters: they belong to the layers, which are found where they were in the model.

    Args:
        program: what to compute.
        convolutions: the layers of its convolutions, in order.
        normalisations: the layers of its normalisations, in order.
        flattened: which of the outputs are images that are returned as rows.
    """

    def __init__(
        self,
        program: TrainingProgram,
        convolutions: Sequence[nn.Module],
        normalisations: Sequence[nn.Module],
        flattened: Sequence[bool],
    ) -> None:
        super().__init__()
        items = {item.layer: item for item in program.instructions if isinstance(item, SparseConvolution)}
        self.program = program
        # In tuples, which register nothing: a layer must not have a second name.
        self._convolutions = tuple(
            ConvolutionLayer(module, items[index]) for index, module in enumerate(convolutions)
        )
        self._normalisations = tuple(NormalisationLayer(module) for module in normalisations)  # type: ignore[arg-type]
        self._flattened = tuple(flattened)
        self._steps: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": {}}

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs: a tensor, or a tuple of several.

        Args:
            inputs: images ``[N, C, *size]`` in float32, or rows ``[..., C]``, as the layers take them.

        Raises:
            ArgumentError: an input has other channels or dimensions than the layers take.
            ValueError: a batch has one value a channel, which has no variance.
        """
        rows = [self._as_images(tensor) for tensor in inputs]
        parts = (*self._convolutions, *self._normalisations)
        versions = tuple(layer.prepare() for layer in self._convolutions)
        parameters = [tensor for part in parts for tensor in part.tensors]
        outputs = _Function.apply(self, versions, torch.is_grad_enabled(), len(rows), *rows, *parameters)
        if not self.program.dims:
            shape = inputs[0].shape[:-1]
            outputs = tuple(output.reshape(*shape, output.shape[-1]) for output in outputs)
        outputs = tuple(
            output.flatten(1) if flat else output
            for output, flat in zip(outputs, self._flattened, strict=True)
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def pack(self) -> None:
        """Pack the weights that are masked."""
        for layer in self._convolutions:
            layer.pack()

    def unpack(self) -> None:
        """Let all weights be dense until the next forward pass."""
        for layer in self._convolutions:
            layer.unpack()

    def trained(self) -> list[Tensor]:
        """The parameters of the layers: weights, packed or not, and biases ``[out]``."""
        return [tensor for part in (*self._convolutions, *self._normalisations) for tensor in part.tensors]

    def _as_images(self, tensor: Tensor) -> Tensor:
        return tensor if self.program.dims else tensor.reshape(-1, tensor.shape[-1])

    def step(
        self, inputs: Sequence[Tensor], versions: Any, needs: Sequence[bool], differentiated: bool
    ) -> tuple[Any, tuple[TensorForm, ...]]:
        """The compiled step for tensors of these forms, and those forms."""
        forms = tuple(TensorForm(tuple(x.shape), tuple(x.stride())) for x in inputs)
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
        count = len(forms)
        needed = tuple(index for index in range(count) if needs[index] and differentiated)
        sizes = _sizes(self.program, forms)
        trained = iter(needs[count:])
        layers = []
        for layer in self._convolutions:
            flags = [next(trained) and differentiated for _ in layer.tensors]
            source = sizes[self._source_of(layer)]
            layers.append(layer.state(source, flags[0], len(flags) > 1 and flags[1]))
        from sparsefx.kernels.training.plan import Draft
        from sparsefx.kernels.training.step import make_step  # both need llvmlite

        draft = Draft(self.program, forms, layers, norms, needed, threads)
        outputs = tuple(contiguous_form(shape) for shape in self.output_shapes(draft))
        wanted = differentiated and any(needs)
        inputs = tuple(contiguous_form(forms[index].shape) for index in needed)
        return make_step(draft, outputs, outputs if wanted else None, inputs)

    def _source_of(self, layer: ConvolutionLayer) -> int:
        return layer._item.source

    def output_shapes(self, draft: Any) -> list[tuple[int, ...]]:
        """Of the outputs as tensors."""
        shapes = []
        for value in self.program.outputs:
            layout = draft.values[value]
            is_flat = value in self.program.flat or not self.program.dims
            size = () if is_flat else layout.size[3 - self.program.dims :]
            shapes.append((layout.images, layout.channels, *size))
        return shapes

    def extra_repr(self) -> str:
        """How many layers it stands for."""
        return f"{len(self._convolutions)} layers, {len(self._normalisations)} normalisations"


class _Function(torch.autograd.Function):
    """A region's step in autograd."""

    @staticmethod
    def forward(
        ctx: Any, region: TrainingRegion, versions: Any, differentiated: bool, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        inputs = [_plain(tensor) for tensor in tensors[:count]]
        parameters = tensors[count:]
        _check(region.program, inputs)
        step, forms = region.step(inputs, versions, ctx.needs_input_grad[4:], differentiated)
        named = _named_parameters(region, [parameter.contiguous() for parameter in parameters])
        for index, layer in enumerate(region._normalisations):
            _check_variance(layer, inputs[0], region, step)
            named[f"norm momentum {index}"] = layer.count()
            for name in ("running_mean", "running_var"):
                statistic = getattr(layer.module, name)
                if statistic is not None:
                    named[f"norm {name} {index}"] = statistic
        named |= {f"input {index}": tensor for index, tensor in enumerate(inputs)}
        outputs = tuple(torch.empty(form.shape) for form in step.outputs)
        named |= {f"output {index}": tensor for index, tensor in enumerate(outputs)}
        kept = Borrowed(step.kept)
        named["kept"] = kept.tensor
        step.forward.run(named)
        ctx.run = _Run(region, step, kept, forms) if step.backward is not None else None
        ctx.count = count
        ctx.save_for_backward(*parameters)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        run: _Run = ctx.run
        parameters = [parameter.contiguous() for parameter in ctx.saved_tensors]
        named = _named_parameters(run.region, parameters)
        named |= {f"gradient {index}": gradient.contiguous() for index, gradient in enumerate(gradients)}
        named["kept"] = run.kept.tensor
        needs = ctx.needs_input_grad[4:]
        results: list[Tensor | None] = [None] * len(needs)
        for index in range(ctx.count):
            if needs[index]:
                results[index] = named[f"input gradient {index}"] = torch.zeros(run.inputs[index].shape)
        wanted = iter(range(ctx.count, len(needs)))
        for names in _names(run.region):
            for name in names:
                place = next(wanted)
                # Kernels add to a weight's gradient, and write those of norms in pairs, needed or not.
                gradient = torch.zeros_like(parameters[place - ctx.count])
                named[name] = gradient
                results[place] = gradient if needs[place] else None
        assert run.step.backward is not None
        run.step.backward.run(named)
        return (None, None, None, None, *results)


def _names(region: TrainingRegion) -> list[list[str]]:
    """Of the gradients of each layer's parameters."""
    names = []
    for index, layer in enumerate(region._convolutions):
        names.append([f"weight gradient {index}", f"bias gradient {index}"][: len(layer.tensors)])
    for index, norm in enumerate(region._normalisations):
        names.append([f"norm weight gradient {index}", f"norm bias gradient {index}"][: len(norm.tensors)])
    return names


def _named_parameters(region: TrainingRegion, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    listed = iter(parameters)
    return {name.replace(" gradient", ""): next(listed) for names in _names(region) for name in names}


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that kernels can read: where its channels are neighbours, or its columns are."""
    tensor = tensor.detach().float()
    if (
        tensor.stride(1) == 1
        and tensor.storage_offset() == 0
        and tensor.is_contiguous(memory_format=torch.channels_last)
        if tensor.dim() == 4
        else False
    ):
        return tensor
    return tensor.contiguous()


def _check(program: TrainingProgram, inputs: Sequence[Tensor]) -> None:
    for index, tensor in enumerate(inputs):
        flat = index in program.flat or not program.dims
        dims = 2 if flat else program.dims + 2
        if tensor.dim() != dims:
            raise ArgumentError(f"an input of {tuple(tensor.shape)} has not {dims} dimensions")
    channels = {
        item.source: item.in_channels for item in program.instructions if isinstance(item, SparseConvolution)
    }
    for index, tensor in enumerate(inputs):
        wanted = channels.get(index, tensor.shape[1])
        if tensor.shape[1] != wanted:
            raise ArgumentError(f"an input of {tuple(tensor.shape)} has not {wanted} channels")


def _check_variance(layer: NormalisationLayer, x: Tensor, region: TrainingRegion, step: Any) -> None:
    """As torch, refuse a batch of one value a channel."""
    if layer.state.training and step.least == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}"
        )


def _sizes(program: TrainingProgram, forms: Sequence[TensorForm]) -> list[Any]:
    sizes = [form.size for form in forms]
    for item in program.instructions:
        size = sizes[item.operands[0]]
        if isinstance(item, Combination):
            sizes.append(item.windows.size(size) if item.windows else size)
        else:
            sizes.append(item.size(size))
    return sizes
