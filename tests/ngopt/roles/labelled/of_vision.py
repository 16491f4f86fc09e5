"""Small networks of timm and torchvision, for images."""

from typing import Any

import torch
from torch import nn


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


def vit_timm() -> tuple[nn.Module, Any]:
    from timm.models import vision_transformer

    model = vision_transformer.VisionTransformer(
        img_size=16,
        patch_size=4,
        num_classes=10,
        embed_dim=40,
        depth=2,
        num_heads=5,
        mlp_ratio=1.4,
        qk_norm=True,
        init_values=0.1,
        reg_tokens=2,
    )
    return model, images(16)


def vit_torchvision() -> tuple[nn.Module, Any]:
    import torchvision

    model = torchvision.models.VisionTransformer(
        image_size=16,
        patch_size=4,
        num_layers=2,
        num_heads=5,
        hidden_dim=40,
        mlp_dim=56,
        num_classes=10,
        representation_size=28,
    )
    return model, images(16)


def swin() -> tuple[nn.Module, Any]:
    import torchvision

    model = torchvision.models.SwinTransformer(
        patch_size=[2, 2],
        embed_dim=24,
        depths=[2, 2],
        num_heads=[3, 4],
        window_size=[4, 4],
        mlp_ratio=1.5,
        stochastic_depth_prob=0.0,
        num_classes=10,
    )
    return model, images(16)


def convnext() -> tuple[nn.Module, Any]:
    from torchvision.models import convnext

    stages = [convnext.CNBlockConfig(24, 36, 2), convnext.CNBlockConfig(36, None, 2)]
    return convnext.ConvNeXt(stages, layer_scale=0.1, num_classes=10), images(32)


def resnet() -> tuple[nn.Module, Any]:
    from timm.models import resnet

    model = resnet.ResNet(
        resnet.BasicBlock,
        (1, 2, 1, 1),
        num_classes=10,
        stem_type="deep",
        stem_width=8,
        channels=(16, 24, 28, 36),
    )
    return model, images(64)


def resnext() -> tuple[nn.Module, Any]:
    from timm.models import resnet

    model = resnet.ResNet(
        resnet.Bottleneck,
        (1, 2, 1, 1),
        num_classes=10,
        cardinality=4,
        base_width=32,
        stem_type="deep",
        stem_width=8,
        channels=(8, 12, 14, 18),
    )
    return model, images(64)


def mobilenet() -> tuple[nn.Module, Any]:
    from torchvision.models import mobilenetv3

    blocks = [
        mobilenetv3.InvertedResidualConfig(16, 3, 32, 16, False, "RE", 1, 1, 1.0),
        mobilenetv3.InvertedResidualConfig(16, 5, 40, 24, True, "HS", 2, 1, 1.0),
    ]
    model = mobilenetv3.MobileNetV3(blocks, last_channel=48, num_classes=10)
    return model, images(32)


def efficientnet_se() -> tuple[nn.Module, Any]:
    from torchvision.models import efficientnet

    stages = [
        efficientnet.MBConvConfig(2, 3, 1, 16, 24, 1),
        efficientnet.MBConvConfig(3, 5, 2, 24, 40, 2),
    ]
    model = efficientnet.EfficientNet(
        stages, dropout=0.0, stochastic_depth_prob=0.0, num_classes=10, last_channel=56
    )
    return model, images(32)


def nfnet() -> tuple[nn.Module, Any]:
    from timm.models import nfnet

    config = nfnet.NfCfg(
        depths=(1, 2),
        channels=(24, 40),
        stem_type="3x3",
        stem_chs=16,
        group_size=8,
        attn_layer="se",
        attn_kwargs={"rd_ratio": 0.5},
        extra_conv=True,
        skipinit=True,
    )
    return nfnet.NormFreeNet(config, num_classes=10), images(32)


def densenet() -> tuple[nn.Module, Any]:
    import torchvision

    model = torchvision.models.DenseNet(
        growth_rate=8,
        block_config=(2, 3),
        num_init_features=12,
        bn_size=2,
        num_classes=10,
    )
    return model, images(32)


def mixer() -> tuple[nn.Module, Any]:
    from timm.models import mlp_mixer

    model = mlp_mixer.MlpMixer(
        img_size=16,
        patch_size=4,
        num_classes=10,
        num_blocks=2,
        embed_dim=40,
        mlp_ratio=(0.5, 1.4),
    )
    return model, images(16)


def eva() -> tuple[nn.Module, Any]:
    from timm.models import eva

    model = eva.Eva(
        img_size=16,
        patch_size=4,
        num_classes=10,
        embed_dim=48,
        depth=2,
        num_heads=3,
        mlp_ratio=1.25,
        swiglu_mlp=True,
        use_rot_pos_emb=True,
        init_values=0.1,
    )
    return model, images(16)


def maxvit() -> tuple[nn.Module, Any]:
    """A block of MaxViT and one of CoAtNet."""
    from timm.models import maxxvit

    config = maxxvit.MaxxVitCfg(
        embed_dim=(24, 36),
        depths=(1, 1),
        block_type=("M", "T"),
        stem_width=16,
        stem_bias=True,
        conv_cfg=maxxvit.MaxxVitConvCfg(expand_ratio=2.0),
        transformer_cfg=maxxvit.MaxxVitTransformerCfg(
            dim_head=12, window_size=(4, 4), expand_ratio=1.5
        ),
        head_hidden_size=28,
    )
    return maxxvit.MaxxVit(config, img_size=32, num_classes=10), images(32)


def convolutional_gru() -> tuple[nn.Module, Any]:
    """The part of RAFT that is repeated."""
    from torchvision.models.optical_flow import raft

    model = raft.UpdateBlock(
        motion_encoder=raft.MotionEncoder(
            in_channels_corr=20,
            corr_layers=(28, 18),
            flow_layers=(14, 10),
            out_channels=22,
        ),
        recurrent_block=raft.RecurrentBlock(input_size=16 + 22, hidden_size=26),
        flow_head=raft.FlowHead(in_channels=26, hidden_size=30),
    )
    inputs = {
        "hidden_state": torch.randn(2, 26, 8, 8),
        "context": torch.randn(2, 16, 8, 8),
        "corr_features": torch.randn(2, 20, 8, 8),
        "flow": torch.randn(2, 2, 8, 8),
    }
    return model, inputs
