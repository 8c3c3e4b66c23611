"""Small networks of every family, with random weights."""

import segmentation_models_pytorch as smp
import torch
import torchvision
import transformers

from das3.models import load_segmenter

CLASSES = 4

USER_CODE = """
from dataclasses import dataclass
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, form="tensor", stride=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.aux = nn.Conv2d(8, num_classes, 1)
        self.last = nn.Conv2d(8, num_classes, 1)
        self.form = form

    def forward(self, x):
        f = self.body(x)
        main, aux = self.last(f), self.aux(f)
        return {"tensor": main, "dict": {"aux": aux, "out": main}, "tuple": (main, aux), "object": Out(main),
                "odd": {"first": aux, "second": main}}[self.form]

@dataclass
class Out:
    logits: torch.Tensor

def build(num_classes=4, **kwargs):
    torch.manual_seed(0)
    return Net(num_classes, **kwargs)
"""


def hf_segformer(classes=CLASSES):
    config = transformers.SegformerConfig(
        num_labels=classes,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def hf_upernet():
    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        num_labels=CLASSES,
        auxiliary_in_channels=24,
        auxiliary_channels=8,
    )
    return transformers.UperNetForSemanticSegmentation(config)


def hf_dpt():
    config = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        num_labels=CLASSES,
        use_auxiliary_head=True,
        auxiliary_loss_weight=0.4,
    )
    return transformers.DPTForSemanticSegmentation(config)


def hf_mobilevit():
    config = transformers.MobileViTConfig(
        num_labels=CLASSES,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 24, 32, 32, 48],
        num_attention_heads=2,
        aspp_out_channels=16,
        image_size=64,
    )
    return transformers.MobileViTForSemanticSegmentation(config)


def _swin():
    sizes = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    return transformers.SwinConfig(image_size=64, out_features=["stage1", "stage2", "stage3", "stage4"], **sizes)


def hf_maskformer(classes=CLASSES):
    decoder = transformers.DetrConfig(
        **{"d_model": 16, "num_queries": 6, "decoder_layers": 2, "encoder_layers": 1},
        **{"decoder_attention_heads": 2, "encoder_attention_heads": 2, "decoder_ffn_dim": 16, "encoder_ffn_dim": 16},
    )
    config = transformers.MaskFormerConfig(
        backbone_config=_swin(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, num_labels=classes
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


_SMALL = {"encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2, "num_queries": 6, "hidden_dim": 32}


def hf_mask2former(classes=CLASSES):
    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(),
        num_labels=classes,
        **_SMALL,
        **{"feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32},
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def hf_oneformer(classes=CLASSES, **kwargs):
    config = transformers.OneFormerConfig(
        backbone_config=_swin(),
        num_labels=classes,
        **_SMALL,
        **{"conv_dim": 32, "mask_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32, "query_dec_layers": 1},
        **kwargs,
    )
    return transformers.OneFormerForUniversalSegmentation(config)


def hf_eomt(classes=CLASSES):
    config = transformers.EomtConfig(
        **{"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_blocks": 2, "num_queries": 6},
        **{"image_size": 96, "patch_size": 16, "num_register_tokens": 1, "num_labels": classes},
    )
    return transformers.EomtForUniversalSegmentation(config)


def tv(name, **kwargs):
    builder = torchvision.models.get_model_builder(name)
    return lambda: builder(weights=None, weights_backbone=None, num_classes=CLASSES, **kwargs)


def of_smp(name, **kwargs):
    return lambda: getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES, **kwargs)


def of_das3(name, **model_args):
    return lambda: load_segmenter(f"das3:{name}", num_classes=CLASSES, model_args=model_args)


# name → (how to build it, where its classifier is)
NETWORKS = {
    "torchvision:fcn_resnet50": (tv("fcn_resnet50", aux_loss=True), ["classifier.4"]),
    "torchvision:deeplabv3_mobilenet_v3_large": (tv("deeplabv3_mobilenet_v3_large"), ["classifier.4"]),
    "torchvision:lraspp_mobilenet_v3_large": (
        tv("lraspp_mobilenet_v3_large"),
        ["classifier.low_classifier", "classifier.high_classifier"],
    ),
    "smp:Unet": (of_smp("Unet", decoder_channels=(32, 16, 16, 8, 8)), ["segmentation_head.0"]),
    "smp:FPN": (of_smp("FPN"), ["segmentation_head.0"]),
    "smp:DeepLabV3Plus": (of_smp("DeepLabV3Plus", decoder_channels=32), ["segmentation_head.0"]),
    "smp:Segformer": (of_smp("Segformer", decoder_segmentation_channels=32), ["segmentation_head.0"]),
    "smp:UPerNet": (of_smp("UPerNet", decoder_channels=32), ["segmentation_head.0"]),
    "hf:segformer": (hf_segformer, ["decode_head.classifier"]),
    "hf:upernet": (hf_upernet, ["decode_head.classifier"]),
    "hf:dpt": (hf_dpt, ["head.head.4"]),
    "hf:mobilevit": (hf_mobilevit, ["segmentation_head.classifier.convolution"]),
    "hf:maskformer": (hf_maskformer, ["class_predictor", "mask_embedder"]),
    "hf:mask2former": (hf_mask2former, ["class_predictor", "model.transformer_module.decoder.mask_predictor"]),
    "hf:oneformer": (
        hf_oneformer,
        ["model.transformer_module.decoder.class_embed", "model.transformer_module.decoder.mask_embed"],
    ),
    "hf:eomt": (hf_eomt, ["class_predictor", "mask_head"]),
    "das3:deeplabv2_resnet101": (
        of_das3("deeplabv2_resnet101", layers=[1, 1, 1, 1]),
        [f"classifier.{i}" for i in range(4)],
    ),
    "das3:segformer": (of_das3("segformer", encoder="mit_b0", channels=32), ["classifier"]),
    "das3:daformer": (of_das3("daformer", encoder="mit_b0", channels=32), ["classifier"]),
    "das3:small": (of_das3("small", width=8), ["classifier"]),
}


def logits(segmenter, images):
    with torch.no_grad():
        return segmenter.eval()(images)
