"""The list of models, chosen before it was run. Taking one out is a CHANGELOG entry.

One small representative per convolutional family, and hybrids with attention as barrier cases. ``source`` says who
builds it: ``timm`` and ``smp`` (segmentation_models_pytorch) are packages, ``own`` is :mod:`bench.zoo.networks` and
:mod:`bench.zoo.detectors`.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZE = (256, 320)
"""Rows and columns of the image, where a model does not ask for another."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the list. ``fixed`` is the only image size (rows, columns) that the model takes, if there is one."""

    name: str
    family: str
    source: str
    fixed: tuple[int, int] | None = None


_TIMM = {
    "ResNet": "resnet18 resnet26t resnetblur18 resnetaa34d resnetrs50",
    "ResNeXt": "resnext50_32x4d",
    "Wide ResNet": "wide_resnet50_2",
    "SE-ResNet, ECA, GC": "legacy_seresnet18 seresnet33ts ecaresnet26t gcresnext26ts",
    "Res2Net": "res2net50_14w_8s res2next50",
    "ResNeSt": "resnest14d",
    "SK-ResNet": "skresnet18",
    "RegNet": "regnetx_002 regnety_002 regnetz_b16 regnetv_040",
    "DenseNet": "densenet121 densenetblur121d rdnet_tiny",
    "VGG": "vgg11 vgg11_bn",
    "Inception": "inception_v3 inception_v4 inception_resnet_v2",
    "Xception": "legacy_xception xception41",
    "DLA": "dla34 dla46x_c dla60_res2net",
    "DPN": "dpn48b",
    "HRNet": "hrnet_w18_small",
    "CSPNet, DarkNet": "cspresnet50 cspresnext50 cspdarknet53 darknet17 cs3darknet_focus_s cspnext_tiny",
    "MobileNet": "mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small",
    "EfficientNet": "efficientnet_b0 tf_efficientnet_b0 efficientnet_lite0 tf_efficientnet_lite0 efficientnet_b0_gn",
    "EfficientNetV2": "tf_efficientnetv2_b0",
    "MixNet": "mixnet_s tf_mixnet_s",
    "GhostNet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "MNASNet": "mnasnet_small semnasnet_075 spnasnet_100",
    "TinyNet": "tinynet_e",
    "ReXNet": "rexnet_100",
    "FBNet": "fbnetc_100 fbnetv3_b",
    "HardCoRe-NAS": "hardcorenas_a",
    "LCNet": "lcnet_050 lcnetv2_small",
    "SelecSLS": "selecsls42b",
    "NFNet": "nf_regnet_b0 eca_nfnet_l0 dm_nfnet_f0",
    "BiT, ResNetV2": "resnetv2_50 resnetv2_50x1_bit",
    "RepVGG": "repvgg_a0",
    "MobileOne": "mobileone_s0",
    "RepGhost": "repghostnet_050",
    "RepViT": "repvit_m0_9",
    "GENet": "gernet_s",
    "ConvNeXt": "convnext_atto convnextv2_atto",
    "ConvMixer": "convmixer_768_32",
    "VoVNet": "vovnet39a ese_vovnet19b_slim",
    "HGNet": "hgnet_tiny hgnetv2_b0",
    "InceptionNeXt": "inception_next_atto",
    "StarNet": "starnet_s1",
    "FasterNet": "fasternet_t0",
    "MambaOut": "mambaout_femto",
    "FocalNet": "focalnet_tiny_srf",
    "TResNet": "tresnet_m",
    "NASNet": "nasnetalarge pnasnet5large",
    "PoolFormer": "poolformer_s12 poolformerv2_s12",
    "ConvFormer, CAFormer": "convformer_s18 caformer_s18",
    "FastViT": "fastvit_t8 fastvit_sa12",
    "EdgeNeXt": "edgenext_xx_small",
    "EfficientViT": "efficientvit_b0",
    "MobileViT": "mobilevit_xxs mobilevitv2_050",
    "MobileNetV4 hybrid": "mobilenetv4_hybrid_medium",
    "SwiftFormer": "swiftformer_xs",
    "SHViT": "shvit_s1",
    "NextViT": "nextvit_small",
}
_TIMM_FIXED = {
    "EfficientFormer": ("efficientformer_l1", (224, 224)),
    "EfficientFormerV2": ("efficientformerv2_s0", (224, 224)),
    "BAT-ResNeXt": ("bat_resnext26ts", (256, 256)),
    "BoTNet": ("botnet26t_256", (256, 256)),
    "HaloNet": ("halonet26t", (256, 256)),
    "LambdaNet": ("lambda_resnet26t", (256, 256)),
    "CoAtNet": ("coatnet_pico_rw_224", (224, 224)),
}
_SMP = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet"
_OWN = {
    "ShuffleNet": "shufflenet_v2",
    "SqueezeNet": "squeezenet",
    "HRNet segmentation": "hrnet_segmentation",
    "FCOS": "fcos",
    "RetinaNet": "retinanet",
    "YOLO": "yolo_csp_pan",
    "TraceNet": "tracenet_r50_fpn",
}

MODELS: tuple[Entry, ...] = (
    *(Entry(name, family, "timm") for family, names in _TIMM.items() for name in names.split()),
    *(Entry(name, family, "timm", size) for family, (name, size) in _TIMM_FIXED.items()),
    *(Entry(f"smp_{name}", "encoder-decoder", "smp") for name in _SMP.split()),
    *(Entry(name, family, "own") for family, name in _OWN.items()),
)

LARGE: tuple[str, ...] = tuple(
    """
    resnet18 resnext50_32x4d regnetx_002 densenet121 vgg11_bn dla34 hrnet_w18_small cspdarknet53 mobilenetv1_100
    mobilenetv2_050 efficientnet_b0 efficientnet_lite0 repvgg_a0 vovnet39a convnext_atto fasternet_t0 shufflenet_v2
    squeezenet smp_Unet hrnet_segmentation fcos retinanet yolo_csp_pan tracenet_r50_fpn
    """.split()
)
"""Models that are also measured on a large image, where a deep cell does not see everything."""
