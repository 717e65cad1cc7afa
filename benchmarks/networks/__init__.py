"""The networks of ``architectures.py``: those of timm, and small definitions of what timm does not have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from networks import classifiers, detectors, maps, sequences
from networks.timm_networks import of_class, timm

COLOUR = (3, 64, 64)


@dataclass(frozen=True)
class Architecture:
    """A network with random weights.

    Attributes:
        name: In the table.
        build: Makes it.
        size: Channels, height and width of its images.
        outputs: Which of the returned tensors decide; None where there is one.
        kind: How they decide (``--output-kind``); None where shape and end say it.
    """

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, int, int] = COLOUR
    outputs: str | None = None
    kind: str | None = None


_STAGES: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 32, 48, 64)}
_CLASSIC = (
    Architecture("LeNet (tanh)", classifiers.lenet, (1, 32, 32)),
    Architecture("VGG-like, no norms", classifiers.vgg),
    Architecture("SqueezeNet-like", classifiers.squeezenet),
    Architecture("LightCNN-like (maxout)", classifiers.light_cnn, (1, 64, 64)),
    Architecture("Inception-like", classifiers.inception),
    Architecture("Xception-like", classifiers.xception),
    Architecture("RepVGG-like", classifiers.repvgg),
    Architecture("ResNet", of_class("resnet.ResNet", block="BasicBlock", **_STAGES)),
    Architecture("ResNet with group norms", classifiers.group_norm_resnet),
    Architecture("SK-ResNet", of_class("sknet.ResNet", block="SelectiveKernelBasic", **_STAGES)),
    Architecture("Res2Net", of_class("res2net.ResNet", block="Bottle2neck", **_STAGES, block_args={"scale": 4})),
    Architecture("ResNetV2", timm("resnetv2_18", **_STAGES)),
    Architecture("NF-ResNet (test_nfnet)", timm("test_nfnet")),
    Architecture("RegNetY-like (test_byobnet)", timm("test_byobnet")),
    Architecture("DenseNet", of_class("densenet.DenseNet", growth_rate=16, block_config=(2, 3, 2))),
)
_MOBILE = (
    Architecture("MobileNetV2-0.35", timm("mobilenetv2_035")),
    Architecture("MobileNetV3-small-0.5", timm("mobilenetv3_small_050")),
    Architecture("MobileNetV4-conv-small-0.35", timm("mobilenetv4_conv_small_035")),
    Architecture("EfficientNet (test_efficientnet)", timm("test_efficientnet")),
    Architecture("LCNet-0.35", timm("lcnet_035")),
    Architecture("ShuffleNetV2", classifiers.shufflenet_v2),
    Architecture("GhostNet-0.5", timm("ghostnet_050")),
    Architecture("StarNet", timm("starnet_s050", depths=(1, 1, 2, 1))),
    Architecture("FasterNet", timm("fasternet_t0", depths=(1, 1, 2, 1))),
    Architecture("RepViT", timm("repvit_m0_9", depth=(1, 1, 2, 1), embed_dim=(16, 32, 48, 64))),
)
_MIXER: dict[str, Any] = {"img_size": 64, "patch_size": 8, "num_blocks": 2, "embed_dim": 64}
_SWIN: dict[str, Any] = {
    "img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)
}  # fmt: skip
_RESIDUAL = {"block_layer": "ResBlock", "norm_layer": "Affine"}
_GATED = {"block_layer": "SpatialGatingBlock", "mlp_layer": "GatedMlp"}
_POOLED: dict[str, Any] = {"downsample_norm": None, "mlp_bias": True, "norm_layers": "GroupNorm1", "mlp_act": nn.GELU}
_NARROW = (16, 32, 48, 64)
_ATTENTION = (
    Architecture("ConvNeXt", timm("convnext_atto", depths=(1, 1, 2, 1), dims=_NARROW)),
    Architecture("ConvNeXtV2", timm("convnextv2_atto", depths=(1, 1, 2, 1), dims=_NARROW)),
    Architecture("ConvMixer", of_class("convmixer.ConvMixer", 64, 3, kernel_size=5, patch_size=4)),
    Architecture("PoolFormer", of_class("metaformer.MetaFormer", depths=(1, 1, 1, 1), dims=_NARROW, **_POOLED)),
    Architecture("MLP-Mixer", of_class("mlp_mixer.MlpMixer", **_MIXER)),
    Architecture("ResMLP", of_class("mlp_mixer.MlpMixer", **_MIXER, mlp_ratio=4, **_RESIDUAL)),
    Architecture("gMLP", of_class("mlp_mixer.MlpMixer", **_MIXER, mlp_ratio=6, **_GATED)),
    Architecture("ViT", timm("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=2, embed_dim=96)),
    Architecture("DeiT, distilled", timm("deit_tiny_distilled_patch16_224", img_size=64, depth=2, embed_dim=96)),
    Architecture("ViT, relative positions", timm("test_vit_relpos", img_size=64)),
    Architecture(
        "EVA-02 (rotary positions)",
        timm("eva02_tiny_patch14_224", img_size=56, depth=2, embed_dim=96, head_init_scale=1.0),
        (3, 56, 56),
    ),
    Architecture("CaiT", timm("cait_xxs24_224", img_size=64, depth=2, embed_dim=96)),
    Architecture("XCiT", timm("xcit_nano_12_p16_224", img_size=64, depth=2, embed_dim=64)),
    Architecture("Swin", timm("swin_tiny_patch4_window7_224", **_SWIN)),
    Architecture("SwinV2", timm("swinv2_tiny_window8_256", **_SWIN)),
    Architecture("PVTv2", timm("pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=_NARROW, num_heads=(1, 2, 3, 4))),
    Architecture("MaxViT (test_maxvit)", timm("test_maxvit", img_size=64)),
    Architecture("CoAtNet (test_coatnet)", timm("test_coatnet", img_size=64)),
    Architecture("MobileViT-XXS", timm("mobilevit_xxs")),
    Architecture("EfficientFormerV2", timm("efficientformerv2_s0", img_size=64, depths=(1, 1, 1, 2))),
    Architecture("EfficientViT", timm("efficientvit_b0", depths=(1, 1, 1, 1, 1))),
    Architecture("LeViT", timm("levit_128s", img_size=64, depth=(1, 1, 1))),
    Architecture("EdgeNeXt", timm("edgenext_xx_small", depths=(1, 1, 2, 1), dims=_NARROW)),
    Architecture("FastViT", timm("fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(48, 96, 192, 384))),
)
_OTHER = (
    Architecture("tagger (labels)", classifiers.tagger),
    Architecture("UNet", maps.UNet, (3, 48, 48)),
    Architecture("ESPNet-like", maps.ESPNet),
    Architecture("DeepLab-like", maps.DeepLab),
    Architecture("Fast-SCNN-like", maps.FastSCNN),
    Architecture("HRNet-like (heat maps)", maps.HRNet, kind="values"),
    Architecture("ESPCN (super-resolution)", maps.super_resolution, (1, 32, 32), kind="values"),
    Architecture("DnCNN (denoiser)", maps.denoiser, (1, 32, 32), kind="values"),
    Architecture("autoencoder", maps.autoencoder, (3, 32, 32), kind="values"),
    Architecture("style transfer", maps.Style, (3, 32, 32), kind="values"),
    Architecture("FastestDet-like", detectors.FastestDet, kind="values"),
    Architecture("SSD-like", detectors.SSD, outputs="0,1", kind="values"),
    Architecture("YOLOv5-like", detectors.YOLO, kind="values"),
    Architecture("CenterNet-like", detectors.CenterNet, outputs="heat,size,offset", kind="values"),
    Architecture("RetinaFace-like", detectors.FaceBoxes, outputs="0,1,2", kind="values"),
    Architecture("MobileFaceNet-like (embedding)", sequences.Embedding),
    Architecture("PFLD-like (landmarks)", sequences.Landmarks, kind="values"),
    Architecture("text recogniser", sequences.TextReader, (1, 32, 96)),
    Architecture("TC-ResNet-like (Conv1d)", sequences.Keywords, (1, 40, 64)),
    Architecture("DS-CNN-like (spectrogram)", sequences.SmallSpeech, (1, 50, 20)),
    Architecture("two tasks", sequences.TwoTasks, outputs="kind,age", kind="class,values"),
)
ARCHITECTURES = (*_CLASSIC, *_MOBILE, *_ATTENTION, *_OTHER)
