"""Small diffusion models of diffusers, and language models with adapters of peft."""

from typing import Any

import torch
from torch import nn

TOKENS = torch.arange(16).expand(2, 16)


def dit() -> tuple[nn.Module, Any]:
    import diffusers

    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "class_labels": torch.tensor([1, 7]),
    }
    return model, inputs


def unet() -> tuple[nn.Module, Any]:
    import diffusers

    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(24, 40),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=10,
    )
    inputs = {
        "sample": torch.randn(2, 3, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "class_labels": torch.tensor([1, 7]),
    }
    return model, inputs


def unet_conditional() -> tuple[nn.Module, Any]:
    import diffusers

    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(24, 40),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=28,
        attention_head_dim=4,  # the number of heads, whatever its name
    )
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "encoder_hidden_states": torch.randn(2, 16, 28),
    }
    return model, inputs


def lora_gpt2() -> tuple[nn.Module, Any]:
    import peft
    import transformers

    config = transformers.GPT2Config(
        vocab_size=100,
        n_positions=20,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=48,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    adapter = peft.LoraConfig(r=5, target_modules=["c_attn"], fan_in_fan_out=True)
    return peft.get_peft_model(transformers.GPT2LMHeadModel(config), adapter), TOKENS


def lora_llama() -> tuple[nn.Module, Any]:
    import peft
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=3,
        max_position_embeddings=20,
        use_cache=False,
    )
    adapter = peft.LoraConfig(r=5, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), adapter), TOKENS
