"""What a region refuses: tensors that its kernels would read wrongly, and sizes that fit no layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsefx.errors import ArgumentError
from sparsefx.kernels.ir.program import DHW
from sparsefx.kernels.training.forms import TensorForm
from sparsefx.kernels.training.program import Combination, Instruction, SparseConvolution, TrainingProgram


class Image(NamedTuple):
    """What one image of a value has: channels, and depth, height and width."""

    channels: int
    size: DHW


def check_inputs(program: TrainingProgram, inputs: Sequence[Tensor]) -> None:
    """Refuse inputs of another type, device, number of dimensions or of images.

    Args:
        program: that takes them.
        inputs: images ``[N, C, *size]``, or rows ``[N, C]``.

    Raises:
        ArgumentError: an input is one of these.
    """
    types = [torch.float32]
    if torch.is_autocast_enabled("cpu"):
        types += [torch.bfloat16, torch.float16]
    for index, tensor in enumerate(inputs):
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise ArgumentError(
                f"an input is a {type(tensor).__name__}; sparse kernels of training read plain tensors; "
                "trace, quantise or hand to torch.export what sparsefx.export(model, example_inputs) returns"
            )
        if tensor.device.type != "cpu":
            raise ArgumentError(
                f"an input is on {tensor.device}; sparse kernels run on the CPU: input.cpu(), or train the "
                "model that was not accelerated"
            )
        if tensor.dtype not in types:
            raise ArgumentError(
                f"an input is of {tensor.dtype}; sparse kernels compute in float32: input.float(), and a "
                "model in float32; torch.autocast may be around"
            )
        dims = 2 if index in program.flat or not program.dims else program.dims + 2
        if tensor.dim() != dims:
            raise ArgumentError(
                f"an input of {tuple(tensor.shape)} has not {dims} dimensions, as the example had; "
                "give a batch of samples"
            )
        if len(tensor) != len(inputs[0]):
            raise ArgumentError(
                f"inputs have {len(inputs[0])} and {len(tensor)} images; give as many of each"
            )


def first_hooked(layers: Sequence[nn.Module]) -> nn.Module | None:
    """The first of a region's layers with a hook, which kernels do not call; None if there is none."""
    hooked = (one for one in layers if one._forward_hooks or one._forward_pre_hooks or one._backward_hooks)
    return next(hooked, None)


def check_parameters(tensors: Sequence[Tensor]) -> None:
    """Refuse parameters and buffers of another type or device.

    Args:
        tensors: of any shape.

    Raises:
        ArgumentError: one is.
    """
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ArgumentError(
                f"a parameter is of {tensor.dtype} on {tensor.device}; sparse kernels compute in float32 "
                "on the CPU: model.float().cpu(), and torch.autocast for less"
            )


def images_of(program: TrainingProgram, forms: Sequence[TensorForm], features: Sequence[int]) -> list[Image]:
    """The images of every value.

    Args:
        program: what is computed.
        forms: of the inputs without noises, ``[N, C, *size]`` or ``[N, C]``.
        features: channels of each normalisation.

    Raises:
        ArgumentError: they do not fit the layers.
    """
    images = [Image(form.shape[1], form.size) for form in forms[: program.inputs - program.noises]]
    images += [images[0]] * program.noises  # until their values are known
    for item in program.instructions:
        sources = [images[source] for source in item.operands]
        if isinstance(item, SparseConvolution):
            made = _convolved(item, sources[0])
        elif isinstance(item, Combination):
            made = _combined(item, sources, features)
            if item.noise is not None:
                images[item.noise] = made
        else:
            made = _concatenated(sources)
        if min(made.size) < 1:
            raise ArgumentError(
                f"images of {_told(sources[0])} are too small for a window of {_window(item)}"
            )
        images.append(made)
    for value in program.outputs:
        if value in program.flat and images[value].size != (1, 1, 1):
            raise ArgumentError(_other_size(images[value].size, (1, 1, 1)))
    return images


def _convolved(item: SparseConvolution, source: Image) -> Image:
    _check_channels(source, item.in_channels)
    if item.whole and source.size != item.kernel:
        raise ArgumentError(_other_size(source.size, item.kernel))
    return Image(item.out_channels, item.size(source.size))


def _combined(item: Combination, sources: Sequence[Image], features: Sequence[int]) -> Image:
    for summand, source in zip(item.summands, sources, strict=True):
        if source != sources[0]:
            raise ArgumentError(f"images of {_told(sources[0])} and of {_told(source)} cannot be added up")
        if summand.normalisation is not None:
            _check_channels(source, features[summand.normalisation.layer])
    channels, size = sources[0]
    return Image(channels, item.windows.size(size) if item.windows else size)


def _concatenated(sources: Sequence[Image]) -> Image:
    for source in sources:
        if source.size != sources[0].size:
            raise ArgumentError(
                f"images of {_told(sources[0])} and of {_told(source)} cannot be concatenated"
            )
    return Image(sum(source.channels for source in sources), sources[0].size)


def _check_channels(source: Image, channels: int) -> None:
    if source.channels != channels:
        raise ArgumentError(f"an input of {_told(source)} has not {channels} channels, as a layer takes")


def _other_size(size: DHW, wanted: DHW) -> str:
    return (
        f"a linear layer takes images of {wanted} and gets some of {size}; give inputs of the example's size"
    )


def _told(image: Image) -> str:
    return f"{image.channels} channels and size {image.size}"


def _window(item: Instruction) -> DHW:
    if isinstance(item, SparseConvolution):
        return item.kernel
    return item.windows.kernel if isinstance(item, Combination) and item.windows else (1, 1, 1)
