"""torchvision's models: classification, segmentation, detection, video, optical flow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch import nn
from torchvision.models.video import mvit

from zoo.case import Case, images, other_images

_MViT = mvit.MViT
_SMALL = {"min_size": 64, "max_size": 128}
_PROPOSALS = {"box_score_thresh": 0.0, "box_detections_per_img": 5, "rpn_post_nms_top_n_test": 20}
_BOXES = {"score_thresh": 0.0, "detections_per_img": 10}
# Builders' options, by the first prefix that fits. Detectors keep a few boxes of any score: random
# weights are sure of nothing.
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception": {"init_weights": False},
    "vit_h_14": {"image_size": 56},
    "vit": {"image_size": 64},
    **dict.fromkeys(("fasterrcnn", "maskrcnn", "keypointrcnn"), _SMALL | _PROPOSALS),
    **dict.fromkeys(("fcos", "retinanet"), _SMALL | _BOXES),
    "ssd": _BOXES,
}
IMAGE_SIZES = {"inception": 96, "vit_h_14": 56, "maxvit": 224, "raft": 128}
CLIPS = {"s3d": (16, 224, 224), "mvit": (8, 64, 64), "swin3d": (4, 64, 64), "": (4, 32, 32)}
DETECTORS = ("fasterrcnn", "maskrcnn", "keypointrcnn", "fcos", "retinanet", "ssd")


def cases() -> Iterator[Case]:
    """Every model that is not quantised."""
    for name in torchvision.models.list_models():
        if not name.startswith("quantized"):
            yield _case(name)


def _case(name: str) -> Case:
    module = torchvision.models.get_model_builder(name).__module__
    build = partial(_build, name)
    if ".video" in module:
        frames, height, width = _by_prefix(CLIPS, name)
        others = ((frames, height, width + 32), (2 * frames, height, width))
        return Case("torchvision", name, build, _clips, (frames, height, width), others)
    size = _by_prefix(IMAGE_SIZES, name, 64)
    inputs = _pairs if name.startswith("raft") else _lists if name.startswith(DETECTORS) else images
    return Case("torchvision", name, build, inputs, (size, size), other_images(size))


def _by_prefix(table: dict[str, Any], name: str, default: Any = None) -> Any:
    return next((value for prefix, value in table.items() if name.startswith(prefix)), default)


def _build(name: str) -> nn.Module:
    options = dict(_by_prefix(OPTIONS, name, {}))
    if name.startswith(DETECTORS) or ".segmentation" in torchvision.models.get_model_builder(name).__module__:
        options["weights_backbone"] = None
    with patch.object(mvit, "MViT", _small_mvit):
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def _small_mvit(**options: Any) -> nn.Module:
    """MViT for small clips, which its builders do not offer."""
    model: nn.Module = _MViT(**options | {"spatial_size": (64, 64), "temporal_size": 8})
    return model


def _clips(batch: int, frames: int, height: int, width: int) -> tuple[Any, ...]:
    return (torch.randn(batch, 3, frames, height, width),)


def _lists(batch: int, height: int, width: int) -> tuple[Any, ...]:
    return ([torch.rand(3, height, width) for _ in range(batch)],)


def _pairs(batch: int, height: int, width: int) -> tuple[Any, ...]:
    return (torch.rand(batch, 3, height, width) * 2 - 1, torch.rand(batch, 3, height, width) * 2 - 1)
