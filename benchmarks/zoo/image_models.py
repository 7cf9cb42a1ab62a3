"""timm's models: a small one of each family, and a second where it is built differently."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import timm
from torch import nn

from zoo.case import Case, images, other_images

TRANSFORMERS = """
    aimv2_large_patch14_224 beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny coat_tiny convit_tiny
    crossvit_9_dagger_240 crossvit_tiny_240 davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224
    deit_tiny_patch16_224 efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0
    efficientvit_m0 eva02_tiny_patch14_224 flexivit_small focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m
    gmixer_12_224 gmlp_ti16_224 hiera_tiny_224 hieradet_small levit_128s levit_conv_128s mixer_s32_224
    mvitv2_small_cls mvitv2_tiny naflexvit_base_patch16_gap nest_tiny nextvit_small pit_ti_224
    pit_ti_distilled_224 pvt_v2_b0 resmlp_12_224 samvit_base_patch16_224 sequencer2d_s shvit_s1
    swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224
    swinv2_tiny_window8_256 test_vit4 tiny_vit_5m_224 tnt_s_patch16_224 twins_pcpvt_small twins_svt_small
    visformer_tiny vit_base_patch16_siglip_224 vit_little_patch16_reg4_gap_256 vit_medium_patch16_gap_240
    vit_relpos_small_patch16_224 vit_small_patch14_reg4_dinov2 vit_small_patch16_dinov3
    vit_small_resnet26d_224 vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
    vit_xsmall_patch16_clip_224 vitamin_small_224 volo_d1_224 xcit_nano_12_p16_224
"""
MIXED = """
    bat_resnext26ts botnet26t_256 caformer_s18 coatnet_nano_rw_224 coatnet_pico_rw_224
    coatnext_nano_rw_224 convformer_s18 cpubone_b0_bfrobust csatv2 edgenext_small_rw edgenext_xx_small
    fastvit_t8 halonet26t iformer_t lambda_resnet26rpt_256 lambda_resnet26t lowformer_b0 mambaout_femto
    maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 mobilenetv4_hybrid_medium mobilenetv5_base mobilevit_xxs
    mobilevitv2_050 poolformer_s12 poolformerv2_s12
"""
CONVOLUTIONAL = """
    convmixer_768_32 convnext_atto convnext_zepto_rms convnextv2_atto cs3darknet_focus_s cspdarknet53
    cspnext_tiny cspresnet50 cspresnext50 densenet121 densenetblur121d dla34 dla46_c dla60_res2net
    dm_nfnet_f0 dpn48b dpn68 eca_nfnet_l0 eca_vovnet39b ecaresnet26t efficientnet_b0 efficientnet_b0_gn
    ese_vovnet19b_slim_dw fasternet_t0 fbnetc_100 fbnetv3_b gcresnet33ts ghostnet_050 ghostnetv2_100
    ghostnetv3_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_atto inception_resnet_v2
    inception_v3 inception_v4 lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception mixnet_s
    mnasnet_small mobilenetv1_100 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small_035
    mobileone_s0 nasnetalarge nf_regnet_b0 nf_resnet26 nfnet_l0 pnasnet5large rdnet_tiny regnetv_040
    regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s
    res2next50 resnest14d resnet10t resnet18 resnet26t resnetaa50 resnetblur50 resnetrs50 resnetv2_18
    resnetv2_50x1_bit resnext26ts rexnet_100 rexnetr_100 selecsls42b semnasnet_050 seresnet18
    seresnext26t_32x4d skresnet18 skresnext50_32x4d spnasnet_100 starnet_s050 test_efficientnet_ln
    test_nfnet tf_efficientnetv2_b0 tf_mobilenetv3_small_075 tinynet_e tresnet_m vgg11_bn vovnet39a
    xception41
"""
SIZES = {
    **dict.fromkeys(("aimv2_large_patch14_224", "eva02_tiny_patch14_224"), 56),
    **dict.fromkeys(("gemma4_vit_167m", "inception_resnet_v2", "inception_v3", "inception_v4"), 96),
    **dict.fromkeys(("bat_resnext26ts", "halonet26t"), 256),
    **dict.fromkeys(("crossvit_9_dagger_240", "crossvit_tiny_240"), 240),
    "efficientformer_l1": 224,
    "vit_small_patch14_reg4_dinov2": 56,
}
"""Pixels, where it is not 64: what the model takes, or a multiple of its patches."""


def cases() -> Iterator[Case]:
    """The models listed above."""
    for name in (TRANSFORMERS + MIXED + CONVOLUTIONAL).split():
        size = SIZES.get(name, 64)
        yield Case("timm", name, partial(_build, name, size), images, (size, size), other_images(size))


def _build(name: str, size: int) -> nn.Module:
    model: nn.Module
    try:
        model = timm.create_model(name, pretrained=False, img_size=size)
    except TypeError:  # a model that takes any image
        model = timm.create_model(name, pretrained=False)
    return model
