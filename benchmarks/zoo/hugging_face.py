"""Hugging Face models from small configurations: few layers, real structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from zoo import diffusion
from zoo.case import Case, Inputs, Keywords, images, other_images

Numbers = dict[str, Any]

# The numbers of a small model, under the names that most configurations share.
_VOCABULARY = {"vocab_size": 120}
_LAYERS = {"hidden_size": 64, "num_hidden_layers": 2}
_TRANSFORMER = _LAYERS | {"num_attention_heads": 4, "intermediate_size": 128}
_IMAGE = _TRANSFORMER | {"image_size": 64, "patch_size": 16}
_TEXT = _TRANSFORMER | _VOCABULARY | {"max_position_embeddings": 64}
_NO_CACHE = {"use_cache": False}
_DECODER = _TEXT | _NO_CACHE | {"num_key_value_heads": 2, "pad_token_id": 0}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_FOUR_STAGES = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
_SWIN = {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
_RESNET = _FOUR_STAGES | {"model_type": "resnet", "embedding_size": 16, "layer_type": "basic"}
_ENCODER_DECODER: Numbers = {
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
    "d_model": 64,
    "decoder_start_token_id": 1,
}
_BART = _ENCODER_DECODER | _VOCABULARY | _TOKENS | _NO_CACHE

TEXT_MODELS: dict[str, Numbers] = {
    **{f"{kind}Model": _TEXT for kind in ("Bert", "Roberta", "XLMRoberta", "Electra", "MPNet")},
    "BertForSequenceClassification": _TEXT,
    "AlbertModel": _TEXT | {"embedding_size": 32},
    "DistilBertModel": _VOCABULARY | {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    "DebertaV2Model": _TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "ModernBertModel": _TEXT | _TOKENS | {"num_hidden_layers": 3, "cls_token_id": 1, "sep_token_id": 2},
    **{f"{kind}ForCausalLM": _DECODER for kind in ("Llama", "Qwen2", "Mistral", "Phi", "StableLm")},
    **{f"{kind}ForCausalLM": _DECODER | {"head_dim": 16} for kind in ("Qwen3", "Gemma", "Gemma2")},
    "MixtralForCausalLM": _DECODER | {"num_local_experts": 4, "experts_implementation": "eager"},
    **{f"{kind}ForCausalLM": _TEXT | _NO_CACHE for kind in ("GPTNeoX", "Falcon")},
    "OPTForCausalLM": _TEXT | _NO_CACHE | {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "GPT2LMHeadModel": _VOCABULARY | _NO_CACHE | {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "BloomForCausalLM": _VOCABULARY | _NO_CACHE | {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "MambaForCausalLM": _VOCABULARY | _NO_CACHE | _LAYERS,
}
IMAGE_MODELS: dict[str, Numbers] = {
    **{f"{kind}ForImageClassification": _IMAGE for kind in ("ViT", "DeiT", "Beit", "Dinov2")},
    **{f"{kind}ForImageClassification": _SWIN for kind in ("Swin", "Swinv2")},
    "ConvNextForImageClassification": _FOUR_STAGES,
    "ResNetForImageClassification": _FOUR_STAGES | {"embedding_size": 16},
    "SegformerForSemanticSegmentation": {"hidden_sizes": [16, 32, 64, 128], "decoder_hidden_size": 64},
    "MobileViTForImageClassification": {
        "hidden_sizes": [48, 64, 80],
        "neck_hidden_sizes": [16, 24, 32, 48, 56, 64, 128],
    },
    "PoolFormerForImageClassification": _FOUR_STAGES,
    "PvtForImageClassification": _FOUR_STAGES | {"image_size": 64, "hidden_sizes": [16, 32, 80, 128]},
    "YolosForObjectDetection": _IMAGE | {"image_size": [64, 64], "num_detection_tokens": 8},
    "DPTForDepthEstimation": {
        **(_IMAGE | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]}),
        "use_batch_norm_in_fusion_residual": True,
        "neck_hidden_sizes": [16, 32, 64, 64],
        "fusion_hidden_size": 32,
    },
    "DetrForObjectDetection": {
        **(_BART | {"num_queries": 8, "backbone": None, "use_timm_backbone": False}),
        "use_pretrained_backbone": False,
        "backbone_config": _RESNET | {"out_features": ["stage4"]},
    },
}


def cases() -> Iterator[Case]:
    """The models listed above, and those with arguments of their own."""
    for name, numbers in TEXT_MODELS.items():
        yield _text(name, partial(_build, name, numbers), _tokens)
    for name, numbers in IMAGE_MODELS.items():
        build = partial(_build, name, numbers | {"num_labels": 10})
        yield Case("huggingface", name, build, images, (64, 64), other_images(64))
    yield _text("T5ForConditionalGeneration", _t5, _source_and_target)
    yield _text("BartForConditionalGeneration", _bart, _source_and_target)
    yield _text("WhisperForConditionalGeneration", _whisper, _sound_and_target)
    yield _text("CLIPModel", partial(_clip, "CLIP"), _text_and_image)
    yield _text("SiglipModel", partial(_clip, "Siglip"), _text_and_image)
    yield Case("huggingface", "Wav2Vec2ForCTC", _wav2vec2, _sound, (800,), ((1000,),))
    yield from diffusion.cases()


def _text(name: str, build: Callable[[], nn.Module], inputs: Inputs) -> Case:
    return Case("huggingface", name, build, inputs, (8,), ((13,),))


def _build(name: str, numbers: Numbers) -> nn.Module:
    """A model of its own configuration class."""
    model_class = getattr(transformers, name)
    model: nn.Module = model_class(model_class.config_class(**numbers))
    return model


def _t5() -> nn.Module:
    numbers = (
        _VOCABULARY | _NO_CACHE | {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    )
    model = _build("T5ForConditionalGeneration", numbers | {"decoder_start_token_id": 0})
    return Keywords(model, "input_ids", "decoder_input_ids")


def _bart() -> nn.Module:
    return Keywords(_build("BartForConditionalGeneration", _BART), "input_ids", "decoder_input_ids")


def _whisper() -> nn.Module:
    numbers = _BART | {"num_mel_bins": 16, "max_source_positions": 24, "max_target_positions": 32}
    return Keywords(_build("WhisperForConditionalGeneration", numbers), "input_features", "decoder_input_ids")


def _clip(kind: str) -> nn.Module:
    return _build(f"{kind}Model", {"text_config": _TEXT | _TOKENS, "vision_config": _IMAGE})


def _wav2vec2() -> nn.Module:
    convolutions = {"conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3)}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    return _build("Wav2Vec2ForCTC", _TRANSFORMER | _VOCABULARY | convolutions | positions)


def _tokens(batch: int, length: int) -> tuple[Any, ...]:
    return (torch.randint(3, _VOCABULARY["vocab_size"], (batch, length)),)


def _source_and_target(batch: int, length: int) -> tuple[Any, ...]:
    return (*_tokens(batch, length), *_tokens(batch, length - 3))


def _sound(batch: int, length: int) -> tuple[Any, ...]:
    return (torch.randn(batch, length),)


def _sound_and_target(batch: int, length: int) -> tuple[Any, ...]:
    return (torch.randn(batch, 16, 48), *_tokens(batch, length))


def _text_and_image(batch: int, length: int) -> tuple[Any, ...]:
    return (*_tokens(batch, length), *images(batch, 64, 64))
