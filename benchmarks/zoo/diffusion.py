"""Networks of image generation, by diffusers: latents, a time step, a prompt or a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import diffusers
import torch
from torch import nn

from zoo.case import Case, Keywords, images, other_images

_BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_PROMPTED = _BLOCKS | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "sample_size": 16,
}
_UNPROMPTED = _BLOCKS | {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
}
_AUTOENCODER = _BLOCKS | {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
}
_TRANSFORMER = {
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 2,
    "sample_size": 16,
    "in_channels": 4,
    "norm_num_groups": 8,
    "num_embeds_ada_norm": 10,
}


def cases() -> Iterator[Case]:
    """One network of each kind."""
    yield _latents("UNet2DConditionModel", partial(diffusers.UNet2DConditionModel, **_PROMPTED), _prompts)
    yield _latents("UNet2DModel", partial(diffusers.UNet2DModel, **_UNPROMPTED), _times)
    yield _latents("DiTTransformer2DModel", _transformer, _classes)
    build = partial(diffusers.AutoencoderKL, **_AUTOENCODER)
    yield Case("huggingface", "AutoencoderKL", build, images, (32, 32), other_images(32))


def _latents(name: str, build: Callable[[], nn.Module], others: Callable[[int], tuple[Any, ...]]) -> Case:
    inputs = partial(_with_latents, others)
    return Case("huggingface", name, build, inputs, (16, 16), ((16, 32), (32, 32)))


def _with_latents(
    others: Callable[[int], tuple[Any, ...]], batch: int, height: int, width: int
) -> tuple[Any, ...]:
    return (torch.randn(batch, 4, height, width), *others(batch))


def _transformer() -> nn.Module:
    names = ("hidden_states", "timestep", "class_labels")
    return Keywords(diffusers.DiTTransformer2DModel(**_TRANSFORMER), *names)


def _times(batch: int) -> tuple[Any, ...]:
    return (torch.arange(batch) * 7,)


def _prompts(batch: int) -> tuple[Any, ...]:
    return (*_times(batch), torch.randn(batch, 5, 32))


def _classes(batch: int) -> tuple[Any, ...]:
    return (*_times(batch), torch.arange(batch))
